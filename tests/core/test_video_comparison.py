"""How far two videos are apart, against numbers worked out by hand and against scikit-image."""

import math
import sys

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from vcut.nodes.video_comparison import AlignedVideos, Scores, Video, psnr, ssim


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _flat(value: float, frames: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.full((frames, height, width, 3), value)


def _aligned(a: torch.Tensor, b: torch.Tensor) -> AlignedVideos:
    return AlignedVideos(Video("video_a", "one", a), Video("video_b", "two", b))


def _scored(a: torch.Tensor, b: torch.Tensor) -> Scores:
    scores = Scores()
    for one, two in _aligned(a, b).frames():
        scores.add(one, two, (one - two).abs())
    return scores


def _refusal(a, b) -> str:
    with pytest.raises(ValueError) as error:
        _aligned(a, b)
    return str(error.value)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (57, 91), (11, 40)])
def test_both_measures_equal_those_of_scikit_image(height, width):
    a = _random(height, width, 3)
    b = a.lerp(_random(height, width, 3, seed=1), 0.4)
    one, two = a.double().numpy(), b.double().numpy()
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(one, two, data_range=1.0, channel_axis=-1, **gaussian)
    assert 0.5 < expected < 0.9
    assert ssim(a, b) == pytest.approx(expected, abs=1e-5)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(one, two, data_range=1), abs=1e-4)


def test_ssim_of_one_pixel_is_that_of_its_brightness():
    # No variance in a window of one: (2 * 0.2 * 0.4 + c) / (0.2^2 + 0.4^2 + c) with c = 0.01^2.
    a, b = _flat(0.2, 1, 1, 1)[0], _flat(0.4, 1, 1, 1)[0]
    assert ssim(a, b) == pytest.approx((0.16 + 1e-4) / (0.2 + 1e-4), abs=1e-6)


# A constant error e is -20 log10 e dB: 0.009 is 40.9, 0.011 39.2, 0.03 30.5 and 0.034 29.4.
@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (0.009, "hardly visible"),
        (0.011, "visible up close"),
        (0.03, "visible up close"),
        (0.034, "clearly visible"),
        (1.0, "clearly visible"),
    ],
)
def test_decibels_are_said_in_words(error, verdict):
    text = _scored(_flat(0.0), _flat(error)).text(16, 16, 4.0)
    assert text.splitlines()[0].endswith(f" (difference {verdict}).")


@pytest.mark.parametrize("side", [1, 2, 3, 8, 10, 12])
def test_ssim_is_defined_when_a_frame_is_smaller_than_its_window(side):
    a, b = _random(side, 64, 3), _random(side, 64, 3, seed=1)
    assert -1 <= ssim(a, b) < 0.99
    assert ssim(a, a) == pytest.approx(1, abs=1e-5)


def test_psnr_of_a_video_is_that_of_all_its_pixels():
    # Errors of 0.1 and 0.3: squared 0.01 and 0.09, mean 0.05, 10 log10(20) = 13.0103 dB. The mean
    # of the frames' 20 and 10.4576 dB would be 15.2288.
    b = torch.cat([_flat(0.6, 1), _flat(0.8, 1)])
    scores = _scored(_flat(0.5), b)
    assert scores.psnr_db == pytest.approx([20, 10.4576], abs=1e-3)
    assert scores.video_psnr_db == pytest.approx(13.0103, abs=1e-3)


def test_identical_frame_counts_as_no_error_in_the_video():
    # Squared errors 0 and 0.01: mean 0.005, 10 log10(200) = 23.0103 dB.
    scores = _scored(_flat(0.5), torch.cat([_flat(0.5, 1), _flat(0.6, 1)]))
    assert scores.psnr_db[0] == math.inf and scores.ssim[0] == 1
    assert scores.video_psnr_db == pytest.approx(23.0103, abs=1e-3)
    assert not scores.is_identical


def test_text_names_the_frame_that_differs_most_counted_from_1():
    b = torch.cat([_flat(0.5, 1), _flat(0.7, 1), _flat(0.6, 1)])
    lines = _scored(_flat(0.5, 3), b).text(16, 16, 4.0).splitlines()
    # 0.2 of 255 is 51, everywhere in frame 2.
    assert lines[1] == "Largest error in frame 2: 51.00 of 255 on average."
    assert lines[0].startswith("3 frames of 16x16: PSNR ")
    assert lines[2] == "Difference shown 4 times as bright."


def test_text_says_identical_and_no_decibels_when_every_pixel_is_equal():
    video = _random(1, 8, 8, 3)
    assert (
        _scored(video, video.clone()).text(8, 8, 4.0) == "1 frame of 8x8: identical in every pixel."
    )


def test_smallest_difference_is_not_called_identical():
    b = _flat(0.5)
    b[1, 3, 3, 2] = math.nextafter(0.5, 1) + 1e-7
    assert "identical" not in _scored(_flat(0.5), b).text(16, 16, 4.0)


def test_longer_video_is_compared_over_the_frames_that_both_have():
    videos = _aligned(_flat(0.5, 5), _flat(0.5, 3))
    assert len(list(videos.frames())) == videos.num_frames == 3
    assert videos.notes() == ["one has 5 frames, two 3: the first 3 are compared."]


@pytest.mark.parametrize("is_first", [True, False])
def test_single_picture_is_compared_with_every_frame(is_first):
    still, video = _random(1, 8, 8, 3), _random(4, 8, 8, 3, seed=1)
    videos = _aligned(still, video) if is_first else _aligned(video, still)
    pairs = [pair if is_first else pair[::-1] for pair in videos.frames()]
    assert len(pairs) == 4
    assert all(torch.equal(one, still[0]) for one, _two in pairs)
    assert all(torch.equal(two, frame) for (_one, two), frame in zip(pairs, video, strict=True))
    label = "one" if is_first else "two"
    assert videos.notes() == [f"{label} is one picture, compared with every frame."]


@pytest.mark.parametrize(("large", "small"), [((576, 1024), (288, 512)), ((480, 854), (72, 128))])
def test_larger_video_is_resized_when_both_have_one_shape(large, small):
    videos = _aligned(_flat(0.25, 1, *small), _flat(0.25, 1, *large))
    ((a, b),) = videos.frames()
    assert a.shape == b.shape == (*small, 3)
    assert torch.allclose(a, b, atol=1e-6)
    sizes = f"{large[1]}x{large[0]} to {small[1]}x{small[0]}"
    assert videos.notes() == [f"two resized from {sizes}."]


def test_resized_frame_has_the_mean_of_the_pixels_that_it_stands_for():
    stripes = torch.zeros(1, 64, 64, 3)
    stripes[:, :, 1::4] = 1.0  # one pixel of the four that become one
    ((small, _),) = _aligned(stripes, torch.zeros(1, 16, 16, 3)).frames()
    # Read between the middle pixels alone, as without antialiasing, it would be above 0.5.
    assert small[2:-2, 2:-2].sub(0.25).abs().max() < 0.05


def test_videos_of_other_shapes_are_refused_with_what_to_do():
    message = _refusal(_flat(0.5, 1, 576, 1024), _flat(0.5, 1, 512, 512))
    assert message.startswith("expected two videos of one size or one shape, got 1024x576 (one)")
    assert "512x512 (two)" in message and "Image Crop" in message


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (torch.zeros(0, 8, 8, 3), "at least one frame as video_b, got 0 of 8x8"),
        (torch.zeros(2, 0, 8, 3), "at least one frame as video_b, got 2 of 8x0"),
        (torch.zeros(2, 8, 8, 2), r"got \(2, 8, 8, 2\)"),
        (torch.zeros(8, 8, 3), r"got \(8, 8, 3\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "of torch.uint8"),
        (None, "got NoneType"),
        ({"samples": 1}, "got dict"),
    ],
)
def test_input_that_is_no_video_is_refused_in_one_sentence(wrong, part):
    with pytest.raises(ValueError, match=f"^expected .*{part}.* Connect .*"):
        Video("video_b", "two", wrong)


def test_values_are_cut_to_what_can_be_shown_and_nan_is_shown_black_and_named():
    b = _flat(0.0, 3)
    b[0, 0, 0, 0], b[1, 0, 0, 0], b[1, 1, 1, 1], b[2, 0, 0, 0] = -5.0, math.nan, math.nan, math.inf
    videos = _aligned(_flat(0.0, 3), b)
    frames = [two for _one, two in videos.frames()]
    assert torch.equal(frames[0], torch.zeros(16, 16, 3))
    assert torch.equal(frames[1], torch.zeros(16, 16, 3))
    assert frames[2][0, 0, 0] == 1 and frames[2].sum() == 1
    assert videos.notes() == [
        "two: no numbers (NaN) in 1 frame, the first is 2; shown black there."
    ]


def test_transparency_is_left_out_and_grey_is_grey():
    rgba = torch.cat([_flat(0.5, 1), torch.zeros(1, 16, 16, 1)], dim=-1)
    videos = _aligned(rgba, torch.full((1, 16, 16, 1), 0.5))
    ((a, b),) = videos.frames()
    assert torch.equal(a, b) and a.shape == (16, 16, 3)
    assert videos.notes() == ["one: transparency left out."]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read(dtype):
    exact = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 2, 2, 1).expand(1, 2, 2, 3)
    ((a, b),) = _aligned(exact, exact.to(dtype)).frames()
    assert a.dtype == b.dtype == torch.float32
    assert torch.equal(a, b)


def test_video_with_any_layout_is_read_and_left_as_it_is():
    video = _random(3, 2, 10, 8).permute(1, 3, 2, 0)[:, ::2, :: -1 + 2]
    before = video.clone()
    for a, b in _aligned(video, before).frames():
        assert torch.equal(a, b)
        a.zero_()
    assert torch.equal(video, before)


def test_missing_kornia_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.metrics", None)
    with pytest.raises(RuntimeError, match="^VCUT: expected the Python package kornia"):
        psnr(_random(4, 4, 3), _random(4, 4, 3, seed=1))
