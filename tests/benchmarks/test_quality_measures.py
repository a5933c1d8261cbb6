"""The quality benchmark's measures, on videos whose answers are known by construction."""

from dataclasses import replace

import numpy as np
import pytest
import quality_measures
import torch
from scipy.ndimage import gaussian_filter
from video_world import Videos, make_videos

FRAMES, SIZE = 14, 64
RED = (230, 30, 30)
LEFT = 1  # its place in video_world.DIRECTIONS


def _flat(*values: int, size: int = SIZE) -> np.ndarray:
    """A video of uniform grey frames."""
    return np.stack([np.full((size, size, 3), value, np.uint8) for value in values])


def _texture(size: int = 160) -> np.ndarray:
    noise = np.random.default_rng(0).random((size, size, 3))
    smooth = gaussian_filter(noise, (2, 2, 0), mode="wrap")
    scaled = (smooth - smooth.min()) / np.ptp(smooth)
    return (255 * scaled).round().astype(np.uint8)


def _pan(pixels_a_frame: int, frames: int = 5) -> np.ndarray:
    """A window that moves right over a texture, so that the picture moves left."""
    texture = _texture()
    starts = [20 + pixels_a_frame * t for t in range(frames)]
    return np.stack([texture[20 : 20 + SIZE, x : x + SIZE] for x in starts])


def _moving_square(step: int = 2) -> tuple[np.ndarray, Videos]:
    """A red square of 20 pixels that moves left by whole pixels over grey, and its truth."""
    video = _flat(*[120] * FRAMES)
    centres = []
    for t in range(FRAMES):
        x = 34 - step * t
        video[t, 30:50, x : x + 20] = RED
        centres.append((x + 10.0, 40.0))
    frames = torch.from_numpy(video).permute(0, 3, 1, 2)[None] / 255
    colour = torch.tensor([RED]) / 255
    path = torch.tensor(centres)[None]
    return video, Videos(frames, torch.tensor([LEFT]), torch.tensor([200]), colour, path)


def _measured(change) -> dict[str, float]:
    """Return the measures of the moving square after ``change`` (in place) of its video."""
    video, truth = _moving_square()
    change(video)
    return _of_truth(video, truth)


def _of_truth(video, truth) -> dict[str, float]:
    video = _levels(video)
    return quality_measures.distance_to_truth(video, truth) | quality_measures.stand_ins(
        video, truth
    )


def _levels(video: np.ndarray) -> np.ndarray:
    """Return a video of 8 bits in 16."""
    return video.astype(np.uint16) * quality_measures.LEVEL


def test_every_measure_has_a_value():
    video, truth = _moving_square()
    values = _of_truth(video, truth) | quality_measures.distance_to_baseline(video, video)
    assert sorted(values) == sorted(measure.name for measure in quality_measures.MEASURES)


def test_distance_to_the_baseline_of_a_constant_offset():
    # Error 10 everywhere: 20 log10(255 / 10) = 28.13 dB.
    values = _distance(_flat(100, 100), _flat(110, 90))
    assert values["psnr_to_baseline"] == pytest.approx(28.1308, abs=1e-4)
    assert values["largest_frame_error"] == 10


def _distance(baseline: np.ndarray, video: np.ndarray) -> dict[str, float]:
    return quality_measures.distance_to_baseline(_levels(baseline), _levels(video))


def test_largest_frame_error_is_that_of_the_worst_frame():
    baseline, video = _flat(100, 100, 100), _flat(100, 130, 101)
    # A quarter of the middle frame is right: its mean error is 22.5, more than 0 and 1.
    video[1, :32, :32] = 100
    values = _distance(baseline, video)
    assert values["largest_frame_error"] == pytest.approx(22.5)


def test_distance_is_taken_before_rounding_to_8_bits():
    baseline = _levels(_flat(100, 100))
    values = quality_measures.distance_to_baseline(baseline, baseline + 10)
    # 10 of 65535 everywhere: 20 log10(6553.5) = 76.33 dB, where 8 bits would show no difference.
    assert values["psnr_to_baseline"] == pytest.approx(76.3294, abs=1e-3)


def test_equal_videos_have_no_distance():
    video = _pan(1)
    assert _distance(video, video) == {
        "psnr_to_baseline": quality_measures.MOST_DB,
        "ssim_to_baseline": pytest.approx(1.0),
        "largest_frame_error": 0.0,
    }


def test_psnr_to_truth_is_that_of_frames_7_to_14():
    def shift_early(video):
        video[:6] += 10

    def shift_late(video):
        video[6:] += 10

    assert _measured(shift_early)["psnr_to_truth"] == pytest.approx(100)
    assert _measured(shift_late)["psnr_to_truth"] == pytest.approx(28.1308, abs=1e-3)


def _reverse(video):
    video[:] = video[::-1].copy()


def _stand_still(video):
    video[:] = video[0]


def _creep(video):
    # The right way, but 4 pixels of the 24 between frame 1 and the mean of frames 12 to 14.
    video[:-3], video[-3:] = video[0].copy(), video[2].copy()


def _turn(video):
    video[:] = np.rot90(video, axes=(1, 2)).copy()  # leftward becomes downward


def _vanish(video):
    video[-3:] = 120


@pytest.mark.parametrize("change", [_reverse, _stand_still, _creep, _turn, _vanish])
def test_direction_is_wrong_when_the_sprite_does_something_else(change):
    assert _measured(change)["direction_right"] == 0


def test_direction_of_the_true_video_is_right():
    assert _measured(lambda video: None)["direction_right"] == 100


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_flow_of_a_shifted_texture_is_its_shift(pixels):
    first, second = _pan(pixels)[:2]
    field = quality_measures.flow(first, second)[8:-8, 8:-8]
    assert np.median(field[..., 0]) == pytest.approx(-pixels, abs=0.05)
    assert np.median(field[..., 1]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_dynamic_degree_of_a_pan_is_its_speed(pixels):
    # The fastest 5 % are a little above the speed that all pixels have.
    assert quality_measures.dynamic_degree(_pan(pixels)) == pytest.approx(pixels, rel=0.1, abs=0.01)


def test_dynamic_degree_of_a_sprite_is_the_sprites_speed():
    # The square is 10 % of the picture: the fastest 5 % lie in it.
    video, _ = _moving_square(step=2)
    assert quality_measures.dynamic_degree(video) == pytest.approx(2, rel=0.1)


def test_linear_fade_is_perfectly_smooth():
    assert quality_measures.motion_smoothness(_flat(10, 40, 70, 100, 130)) == 100


def test_frame_that_jumps_makes_a_video_less_smooth_by_its_error():
    # Frame 2 is 51 of 255 off the middle of its neighbours, frame 4 is right: (20 + 0) / 2.
    assert quality_measures.motion_smoothness(_flat(10, 61, 10, 10, 10)) == pytest.approx(90)


def test_pan_is_smooth_though_its_neighbours_mean_is_far_off():
    video = _pan(3)
    blend = np.abs((video[0].astype(float) + video[2]) / 2 - video[1]).mean() * 100 / 255
    assert blend > 4
    assert quality_measures.motion_smoothness(video) > 99


def test_blurred_video_is_less_sharp():
    video = _pan(1)
    blurred = gaussian_filter(video, (0, 1, 1, 0))
    assert quality_measures.sharpness(blurred) < 0.6 * quality_measures.sharpness(video)


def test_sharpness_grows_with_the_square_of_contrast():
    video = _pan(0) // 4
    assert quality_measures.sharpness(2 * video) == pytest.approx(
        4 * quality_measures.sharpness(video)
    )


def test_true_video_is_as_sharp_and_as_contrasted_as_the_truth():
    values = _measured(lambda video: None)
    assert values["sharpness"] == pytest.approx(1) and values["contrast"] == pytest.approx(1)


def test_contrast_is_the_deviation_from_the_mean_colour():
    # Half of the pixels 20 above, half 20 below their mean in every colour; that it is a red mean
    # is no contrast.
    video = _flat(100, 100)
    video[:, :32] += 40
    video[..., 0] += 90
    assert quality_measures.contrast(video) == pytest.approx(20)


def test_contrast_is_that_of_the_last_three_frames():
    def wash_out(video, frames):
        video[frames] = (video[frames].astype(int) + 120) // 2  # half as far from 120

    early = _measured(lambda video: wash_out(video, slice(0, -3)))
    late = _measured(lambda video: wash_out(video, slice(-3, None)))
    assert early["contrast"] == pytest.approx(1)
    assert late["contrast"] == pytest.approx(0.5, abs=0.01)


CONSISTENCIES = (
    "subject_consistency", "background_consistency", "input_subject", "input_background",
)  # fmt: skip


def test_sprite_that_only_moves_is_perfectly_consistent():
    values = _measured(lambda video: None)
    assert [values[name] for name in CONSISTENCIES] == pytest.approx([100] * 4)


def test_sprite_that_changes_lowers_the_subjects_consistency_alone():
    def scratch(video):
        for t in range(7, FRAMES):  # a dark cross through the sprite
            x = 34 - 2 * t
            video[t, 38:42, x : x + 20] = (150, 20, 20)

    values = _measured(scratch)
    assert values["subject_consistency"] < 97 and values["input_subject"] < 97
    assert values["background_consistency"] == pytest.approx(100)
    assert values["input_background"] == pytest.approx(100)


def test_background_that_flickers_lowers_the_backgrounds_consistency_alone():
    def flicker(video):
        video[1::2, :8, :8] = 200

    values = _measured(flicker)
    assert values["background_consistency"] < 99 and values["input_background"] < 99
    assert values["subject_consistency"] == pytest.approx(100)
    assert values["input_subject"] == pytest.approx(100)


def test_video_of_another_picture_is_consistent_in_itself_but_not_with_the_input():
    def pattern(video):
        video[:, ::4, :16] = 90

    values = _measured(pattern)
    assert values["background_consistency"] == pytest.approx(100)
    assert values["input_background"] < 95


def test_sprite_of_another_look_is_consistent_in_itself_but_not_with_the_input():
    def stripe(video):
        for t in range(FRAMES):
            x = 34 - 2 * t
            video[t, 38:42, x : x + 20] = (150, 20, 20)

    values = _measured(stripe)
    assert values["subject_consistency"] == pytest.approx(100)
    assert values["input_subject"] < 95


def test_patches_are_cut_around_the_given_centres():
    video, truth = _moving_square()
    patches = quality_measures.sprite_patches(video, truth.path[0].numpy())
    assert np.array_equal(patches, np.broadcast_to(np.uint8(RED), patches.shape))


def test_pictures_are_rounded_as_comfyui_saves_them():
    frames = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2]).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    levels = quality_measures.to_uint16(frames)
    assert levels[:, 0, 0, 0].tolist() == [0, 0, 32768, 65535, 65535]
    assert quality_measures.to_uint8(levels)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_measures_of_generated_truth_are_near_the_ideal():
    truth = make_videos(4, seed=1, unseen=True)
    for index in range(4):
        one = truth.only(index)
        values = quality_measures.stand_ins(quality_measures.to_uint16(one.frames[0]), one)
        speed = 0.01 * int(one.motion_bucket)
        assert values["dynamic_degree"] == pytest.approx(speed, rel=0.2)
        assert min(values[name] for name in CONSISTENCIES) > 97
        assert values["motion_smoothness"] > 99.9


def test_one_video_of_several_is_the_same_video():
    videos = make_videos(3, seed=5)
    one = videos.only(1)
    assert one.frames.shape[0] == 1 and torch.equal(one.path[0], videos.path[1])
    assert torch.equal(replace(one).frames[0], videos.frames[1])
