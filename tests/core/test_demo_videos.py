"""The demo's figures and videos, on videos whose answers are known by construction."""

import av
import numpy as np
import pytest
import video_distance
import videos


def _video(value: int, frames: int = 3, height: int = 16, width: int = 24) -> np.ndarray:
    return np.full((frames, height, width, 3), value, dtype=np.uint8)


def test_psnr_of_a_constant_error_is_its_formula():
    # Error 10 everywhere: 20 log10(255 / 10) = 28.13 dB.
    assert video_distance.psnr(_video(100), _video(110)) == pytest.approx(28.1308, abs=1e-4)


def test_equal_videos_have_infinite_psnr_and_ssim_one():
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert video_distance.psnr(noise, noise) == float("inf")
    assert video_distance.ssim(noise, noise) == pytest.approx(1.0)


def test_ssim_falls_when_structure_is_lost():
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert video_distance.ssim(noise, np.full_like(noise, 128)) < 0.1


def test_side_by_side_holds_both_videos_enlarged():
    # Longest side 24: enlarged 256 // 24 = 10 times to 160 x 240.
    both = videos.side_by_side(_video(10), _video(200), ("left", "right"))
    assert both.shape[::2] == (3, 2 * (240 + videos.MARGIN))
    below = both[0, -160 - videos.MARGIN :]
    assert (below[:160, :240] == 10).all()
    assert (below[:160, 240 + videos.MARGIN : -videos.MARGIN] == 200).all()


def test_both_titles_of_a_small_video_fit_above_it():
    titles = ("without VCUT\n50 evaluations, 1234.5 s", "with VCUT\n21 of 50 evaluations, 1234.5 s")
    both = videos.side_by_side(_video(10), _video(200), titles)
    column = 240 + videos.MARGIN
    ink = both[0, : -160 - videos.MARGIN].min(axis=2) < 128
    assert ink[:, :column].any() and ink[:, column:].any()
    assert not ink[:, column - 2 : column + 2].any() and not ink[:, -2:].any()
    assert not ink[[0, -1]].any()


def test_contact_sheet_has_a_row_for_each_video():
    sheet = videos.contact_sheet([_video(10, 14), _video(200, 14)], ["a", "b"], columns=7)
    assert sheet.width == 7 * (240 + videos.MARGIN)
    columns = np.asarray(sheet)[:, 120, 0].tolist()
    assert columns.count(10) == columns.count(200) == 160


def test_title_of_a_contact_sheet_is_readable_in_the_readme():
    # There 830 pixels wide; text of 12 pixels has capitals of at least 8.
    sheet = videos.contact_sheet([_video(200, 14)], ["H"], columns=7)
    ink = (np.asarray(sheet.convert("L")) < 128).any(axis=1).nonzero()[0]
    assert (ink.max() - ink.min() + 1) * 830 / sheet.width >= 8


def test_mp4_has_all_frames_at_even_sides(tmp_path):
    path = tmp_path / "video.mp4"
    videos.write_mp4(path, _video(90, frames=5, height=17, width=25), fps=6)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 6
    assert len(frames) == 5
    assert frames[0].shape == (16, 24, 3)
    assert abs(int(frames[0].mean()) - 90) <= 2
