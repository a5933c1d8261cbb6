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
    assert both.shape == (3, 160 + videos.HEADING + videos.MARGIN, 2 * (240 + videos.MARGIN), 3)
    assert both[0, videos.HEADING + 80, 120].tolist() == [10, 10, 10]
    assert both[0, videos.HEADING + 80, 240 + videos.MARGIN + 120].tolist() == [200, 200, 200]


def test_contact_sheet_has_a_row_for_each_video():
    sheet = videos.contact_sheet([_video(10, 14), _video(200, 14)], ["a", "b"], columns=7)
    assert sheet.size == (7 * (240 + videos.MARGIN), 2 * (160 + videos.HEADING + videos.MARGIN))


def test_mp4_has_all_frames_at_even_sides(tmp_path):
    path = tmp_path / "video.mp4"
    videos.write_mp4(path, _video(90, frames=5, height=17, width=25), fps=6)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 6
    assert len(frames) == 5
    assert frames[0].shape == (16, 24, 3)
    assert abs(int(frames[0].mean()) - 90) <= 2
