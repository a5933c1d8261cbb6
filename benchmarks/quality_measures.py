"""What the quality benchmark measures on one video, each measure with its definition.

Videos are arrays (T, H, W, 3), uint16: rounding to 8 bits would hide distances above about 55 dB,
so those are taken before it. Everything else is measured on 8 bits. The eight stand-ins take
the places of VBench's eight dimensions as the paper reports them, without VBench's networks.
"""

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
import video_distance
from vcut.nodes.video_comparison import ssim, ssim_map
from video_distance import as_floats
from video_truth import LATE, centroids, directions_right, psnr
from video_world import Videos

LEVEL = 257  # of uint16 in one of uint8
MOST_DB = 100.0  # given to equal videos, whose PSNR is infinite
SPRITE_SIDE = 20  # pixels of the square cut out around the sprite: radii are 9 to 11
SPRITE_REACH = 25.0  # pixels from its centre that an SSIM window may show it: 17 in x and in y
FASTEST = 0.05  # the part of the pixels whose flow is the dynamic degree, as in VBench
FLOW_SCALE = 4  # videos are enlarged so much for the flow: its smallest patch is 8 pixels
SHARPNESS_BLUR = 1.0  # pixels
LAST = slice(-3, None)


@dataclass(frozen=True)
class Measure:
    """One column.

    better: which values are better; "one": nearer to 1; "": neither. decimals: to print.
    """

    name: str
    title: str
    group: Literal["baseline", "truth", "stand-in"]
    better: Literal["higher", "lower", "one", ""]
    decimals: int
    definition: str


MEASURES = (
    Measure(
        "psnr_to_baseline", "PSNR to baseline, dB", "baseline", "higher", 2,
        "over the whole video, against the baseline's video of the same frame and seed; "
        f"{MOST_DB:.0f} when equal",
    ),
    Measure(
        "ssim_to_baseline", "SSIM to baseline", "baseline", "higher", 4,
        "structural similarity to that video, mean over frames",
    ),
    Measure(
        "largest_frame_error", "largest frame error, levels", "baseline", "lower", 2,
        "the mean absolute error to the same frame of that video, in levels of 255, of the frame "
        "where it is largest",
    ),
    Measure(
        "psnr_to_truth", "PSNR to truth, dB", "truth", "higher", 2,
        f"against the true continuation, frames 7 to 14; {MOST_DB:.0f} when equal",
    ),
    Measure(
        "direction_right", "direction right, %", "truth", "higher", 1,
        "videos whose sprite is there to the end and went the way its looks tell",
    ),
    Measure(
        "subject_consistency", "subject consistency, %", "stand-in", "higher", 2,
        f"SSIM of the {SPRITE_SIDE} x {SPRITE_SIDE} pixels around the sprite's centroid with those "
        "of the video's first frame and of the frame before, mean",
    ),
    Measure(
        "background_consistency", "background consistency, %", "stand-in", "higher", 2,
        "SSIM with the video's first frame and with the frame before, mean over the pixels farther "
        f"than {SPRITE_REACH:.0f} from where the sprite should be in both",
    ),
    Measure(
        "motion_smoothness", "motion smoothness, %", "stand-in", "higher", 3,
        "every second frame left out and interpolated along the optical flow of its neighbours; "
        "100 less the mean absolute error in percent of 255",
    ),
    Measure(
        "dynamic_degree", "dynamic degree, pixels a frame", "stand-in", "", 3,
        "optical flow of the fastest 5 % of the pixels, mean over frames",
    ),
    Measure(
        "contrast", "contrast, 1 = truth's", "stand-in", "one", 3,
        "for aesthetic quality: standard deviation of the pixels of the last three frames about "
        "their mean colour, over that of the true frames; above 1 over-guided, below 1 washed out",
    ),
    Measure(
        "sharpness", "sharpness, 1 = truth's", "stand-in", "one", 3,
        "for imaging quality: variance of the Laplacian after a Gaussian of 1 pixel (which keeps "
        "edges and takes the VAE's grain), mean over colours and frames, over that of the true "
        "video; below 1 blurred, above 1 halos and noise",
    ),
    Measure(
        "input_subject", "input-subject consistency, %", "stand-in", "higher", 2,
        "as subject consistency, with the input picture instead",
    ),
    Measure(
        "input_background", "input-background consistency, %", "stand-in", "higher", 2,
        "as background consistency, with the input picture instead",
    ),
)  # fmt: skip


def to_uint16(frames: torch.Tensor) -> np.ndarray:
    """Return frames (T, 3, H, W) in 0..1 as (T, H, W, 3), uint16."""
    levels = (frames.clamp(0, 1).double() * 65535).round().permute(0, 2, 3, 1)
    return levels.contiguous().numpy().astype(np.uint16)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Return a video (T, H, W, 3), uint16, as ComfyUI saves pictures."""
    return np.round(video / LEVEL).astype(np.uint8)


def distance_to_baseline(baseline: np.ndarray, video: np.ndarray) -> dict[str, float]:
    """Return the measures of the group "baseline"."""
    error = np.abs(baseline.astype(np.float64) - video) / LEVEL
    return {
        "psnr_to_baseline": psnr_of(np.square(error).mean()),
        "ssim_to_baseline": video_distance.ssim(to_uint8(baseline), to_uint8(video)),
        "largest_frame_error": float(error.mean((1, 2, 3)).max()),
    }


def psnr_of(squared_levels: float) -> float:
    """Return the PSNR in dB of a mean squared error in levels of 255."""
    return min(MOST_DB, float(20 * np.log10(255) - 10 * np.log10(max(squared_levels, 1e-12))))


def distance_to_truth(video: np.ndarray, truth: Videos) -> dict[str, float]:
    """Return the measures of the group "truth". truth: of this video alone, B = 1."""
    truth, made = _as_saved(truth), _as_torch(to_uint8(video))
    return {
        "psnr_to_truth": psnr(truth.frames[:, LATE], made[:, LATE]).item(),
        "direction_right": 100 * directions_right(truth, made).float().item(),
    }


def stand_ins(video: np.ndarray, truth: Videos) -> dict[str, float]:
    """Return the measures of the group "stand-in"."""
    truth, video = _as_saved(truth), to_uint8(video)
    true_video = (truth.frames[0] * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    subject, input_subject = _subject(video, _as_torch(video), truth, true_video[0])
    background, input_background = _background(video, truth.path[0].numpy(), true_video[0])
    return {
        "subject_consistency": subject,
        "background_consistency": background,
        "motion_smoothness": motion_smoothness(video),
        "dynamic_degree": dynamic_degree(video),
        "contrast": contrast(video[LAST]) / contrast(true_video[LAST]),
        "sharpness": sharpness(video) / sharpness(true_video),
        "input_subject": input_subject,
        "input_background": input_background,
    }


def _as_saved(truth: Videos) -> Videos:
    """Return the truth through the same rounding as a made video."""
    return replace(truth, frames=_as_torch(to_uint8(to_uint16(truth.frames[0]))))


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the optical flow (H, W, 2) in pixels, x and y, from one frame to another."""
    grey = [_enlarged(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in (first, second)]
    field = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(*grey, None)
    height, width = first.shape[:2]
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) / FLOW_SCALE


def dynamic_degree(video: np.ndarray) -> float:
    """Return the mean flow of the fastest pixels, in pixels a frame."""
    lengths = [np.linalg.norm(flow(a, b), axis=-1) for a, b in zip(video, video[1:], strict=False)]
    count = max(1, round(FASTEST * lengths[0].size))
    return float(np.mean([np.partition(length.ravel(), -count)[-count:] for length in lengths]))


def interpolate(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the frame (H, W, 3), float, halfway between two: each moved half its flow, mean."""
    moved = [_moved(before, 0.5 * flow(before, after)), _moved(after, 0.5 * flow(after, before))]
    return (moved[0] + moved[1]) / 2


def motion_smoothness(video: np.ndarray) -> float:
    """Return 100 less the error, in percent of 255, of making frames 2, 4, ... of the others."""
    errors = [
        np.abs(interpolate(video[t - 1], video[t + 1]) - video[t]).mean()
        for t in range(1, len(video) - 1, 2)
    ]
    return float(100 * (1 - np.mean(errors) / 255))


def sharpness(video: np.ndarray) -> float:
    """Return the variance of the Laplacian of Gaussian, mean over colours and frames."""
    smooth = [cv2.GaussianBlur(frame.astype(np.float32), (0, 0), SHARPNESS_BLUR) for frame in video]
    return float(np.mean([cv2.Laplacian(frame, cv2.CV_32F).var((0, 1)) for frame in smooth]))


def contrast(video: np.ndarray) -> float:
    """Return the deviation of a frame's pixels from their mean colour, mean over frames."""
    return float(np.mean(np.sqrt(video.astype(np.float64).var((1, 2)).mean(1))))


def sprite_patches(video: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the squares (T, side, side, 3) around centres (T, 2), x and y in pixels."""
    size = (SPRITE_SIDE, SPRITE_SIDE)
    places = [(float(x) - 0.5, float(y) - 0.5) for x, y in centres]  # OpenCV: pixel 0 is at 0.0
    return np.stack(
        [cv2.getRectSubPix(f, size, place) for f, place in zip(video, places, strict=True)]
    )


def _subject(video, made, truth: Videos, picture) -> tuple[float, float]:
    """Return subject consistency within the video and with the input picture."""
    centres = centroids(made, truth.colour)[0][0].numpy()  # (T, 2)
    true_centre = centroids(truth.frames[:, :1], truth.colour)[0][0].numpy()
    patches = as_floats(sprite_patches(video, centres))
    own = as_floats(sprite_patches(picture[None], true_centre))[0]
    first = [ssim(patch, patches[0]) for patch in patches[1:]]
    before = [ssim(a, b) for a, b in zip(patches, patches[1:], strict=False)]
    given = [ssim(patch, own) for patch in patches]
    return 100 * float(np.mean(first + before)), 100 * float(np.mean(given))


def _background(video, path: np.ndarray, picture) -> tuple[float, float]:
    """Return background consistency within the video and with the input picture. path: (T, 2)."""
    is_rest = [torch.from_numpy(_far_from(place, video.shape[1:3])) for place in path]
    frames, picture = as_floats(video), as_floats(picture)

    def similarity(a, b, rest) -> float:
        return ssim_map(a, b)[rest].mean().item()

    steps = range(1, len(video))
    first = [similarity(frames[0], frames[t], is_rest[0] & is_rest[t]) for t in steps]
    before = [similarity(frames[t - 1], frames[t], is_rest[t - 1] & is_rest[t]) for t in steps]
    given = [similarity(picture, f, is_rest[0] & r) for f, r in zip(frames, is_rest, strict=True)]
    return 100 * float(np.mean(first + before)), 100 * float(np.mean(given))


def _far_from(place: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(size) + 0.5
    return np.hypot(x - place[0], y - place[1]) > SPRITE_REACH


def _as_torch(video: np.ndarray) -> torch.Tensor:
    return as_floats(video).permute(0, 3, 1, 2)[None]  # (1, T, 3, H, W)


def _enlarged(grey: np.ndarray) -> np.ndarray:
    return cv2.resize(grey, None, fx=FLOW_SCALE, fy=FLOW_SCALE, interpolation=cv2.INTER_CUBIC)


def _moved(frame: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return the frame with every pixel moved along ``field`` (H, W, 2), backward-sampled."""
    y, x = np.indices(field.shape[:2], dtype=np.float32)
    source = (x - field[..., 0].astype(np.float32), y - field[..., 1].astype(np.float32))
    pixels = frame.astype(np.float32)
    return cv2.remap(pixels, *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
