"""Brings two videos to one length and size, and measures how far apart they are.

Frames here are float32 on the CPU, (H, W, 3) in
0..1, made one at a time: a video may be as large as memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import interpolate

SSIM_WINDOW = 11  # pixels; with sigma 1.5 the Gaussian of Wang et al. 2004
# From these dB on. Stricter than the table of EvalVid (Klaue, Rathke and Wolisz 2003) for
# coded video: 37 and more excellent, 31 good.
VERDICTS = {40: "hardly visible", 30: "visible up close", -math.inf: "clearly visible"}
SAME_SHAPE = 0.01  # two aspect ratios this close are one: sizes are whole pixels


class Video:
    """An IMAGE batch (T, H, W, C) of any float type, read frame by frame as it would be shown."""

    def __init__(self, name: str, label: str, images) -> None:
        """name: the node's input; label: what the texts call the video, its name when empty."""
        self.label = label or name
        shape: tuple[int, ...] = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[3] not in (1, 3, 4) or not images.is_floating_point():
            got = f"{shape} of {images.dtype}" if shape else type(images).__name__
            raise ValueError(
                f"expected IMAGE (frames, height, width, 1, 3 or 4 channels) as {name}, got {got}. "
                "Connect IMAGE from VAE Decode or Load Image"
            )
        if 0 in shape:
            raise ValueError(
                f"expected at least one frame as {name}, got {shape[0]} of {shape[2]}x{shape[1]} "
                "pixels. Connect a video that has frames"
            )
        self.images = images
        self.num_frames, self.height, self.width, self.channels = shape
        self.broken_frames: set[int] = set()  # indices of those that held NaN

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def frame(self, index: int, height: int, width: int) -> torch.Tensor:
        """Return a frame, resized; a video of one frame is that frame throughout."""
        index = index if self.num_frames > 1 else 0
        frame = self.images[index, ..., : min(self.channels, 3)].detach()
        frame = frame.to("cpu", torch.float32)
        if frame.isnan().any():
            self.broken_frames.add(index)
        frame = frame.nan_to_num(nan=0.0).clamp(0, 1)
        if (height, width) != (self.height, self.width):
            frame = _resize(frame, height, width)
        return frame.expand(height, width, 3)


class AlignedVideos:
    """Two videos over the frames that they share, at the smaller one's size."""

    def __init__(self, a: Video, b: Video) -> None:
        if not _are_of_one_shape(a, b):
            raise ValueError(
                f"expected two videos of one size or one shape, got {a.size} ({a.label}) and "
                f"{b.size} ({b.label}). Bring them to one with Image Crop or Upscale Image"
            )
        self.videos = (a, b)
        smaller = min(self.videos, key=lambda video: video.height * video.width)
        self.height, self.width = smaller.height, smaller.width
        longer, shorter = sorted(self.videos, key=lambda video: -video.num_frames)
        self.num_frames = longer.num_frames if shorter.num_frames == 1 else shorter.num_frames

    def frames(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each pair of frames."""
        for index in range(self.num_frames):
            a, b = (video.frame(index, self.height, self.width) for video in self.videos)
            yield a, b

    def notes(self) -> list[str]:
        """Return a sentence for everything that was changed; complete once all frames were read."""
        notes = []
        longer, shorter = sorted(self.videos, key=lambda video: -video.num_frames)
        if longer.num_frames > shorter.num_frames == 1:
            notes.append(f"{shorter.label} is one picture, compared with every frame.")
        elif longer.num_frames > shorter.num_frames:
            notes.append(
                f"{longer.label} has {longer.num_frames} frames, {shorter.label} "
                f"{shorter.num_frames}: the first {self.num_frames} are compared."
            )
        for video in self.videos:
            if (video.height, video.width) != (self.height, self.width):
                notes.append(
                    f"{video.label} resized from {video.size} to {self.width}x{self.height}."
                )
            if video.channels == 4:
                notes.append(f"{video.label}: transparency left out.")
            if video.broken_frames:
                notes.append(
                    f"{video.label}: no numbers (NaN) in {_count(len(video.broken_frames))}, the "
                    f"first is {min(video.broken_frames) + 1}; shown black there."
                )
        return notes


@dataclass
class Scores:
    """How far two videos are apart, frame by frame. Identical frames: inf dB, SSIM 1, error 0."""

    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    mean_error: list[float] = field(default_factory=list)  # absolute, of values in 0..1

    def add(self, a: torch.Tensor, b: torch.Tensor, error: torch.Tensor) -> None:
        """Measure one more pair of frames. error: ``|a - b|``."""
        is_identical = torch.equal(a, b)
        self.psnr_db.append(math.inf if is_identical else psnr(a, b))
        self.ssim.append(1.0 if is_identical else ssim(a, b))
        self.mean_error.append(error.mean().item())

    @property
    def is_identical(self) -> bool:
        return all(value == math.inf for value in self.psnr_db)

    @property
    def video_psnr_db(self) -> float:
        """PSNR of the whole video: of the mean of the frames' squared errors."""
        if self.is_identical:
            return math.inf
        squared_errors = [10 ** (-value / 10) for value in self.psnr_db]
        return -10 * math.log10(sum(squared_errors) / len(squared_errors))

    @property
    def verdict(self) -> str:
        """How far the videos are apart in words, not which is better."""
        if self.is_identical:
            return "identical in every pixel"
        return next(words for least, words in VERDICTS.items() if self.video_psnr_db >= least)

    @property
    def mean_ssim(self) -> float:
        return sum(self.ssim) / len(self.ssim)

    @property
    def worst_index(self) -> int:
        """The frame with the largest mean absolute error, the first of equals."""
        return max(range(len(self.mean_error)), key=self.mean_error.__getitem__)

    def text(self, width: int, height: int, gain: float) -> str:
        """Return the result, a sentence a line. gain: what the difference was multiplied by."""
        video = f"{_count(len(self.ssim))} of {width}x{height}"
        if self.is_identical:
            return f"{video}: {self.verdict}."
        worst = self.worst_index
        return (
            f"{video}: PSNR {self.video_psnr_db:.1f} dB, SSIM {self.mean_ssim:.4f} "
            f"(difference {self.verdict}).\n"
            f"Largest error in frame {worst + 1}: {self.mean_error[worst] * 255:.2f} of 255 on "
            f"average.\nDifference shown {gain:g} times as bright."
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of two frames in dB, inf when they are equal."""
    return _metrics().psnr(a, b, max_val=1.0).item()


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the structural similarity of two frames, 1 when they are equal.

    The mean over the pixels and channels that a window fits around, as scikit-image takes it; below
    11 pixels the window is the largest odd one that fits.
    """
    smallest = min(a.shape[:2])
    window = min(SSIM_WINDOW, smallest - 1 + smallest % 2)
    return _similarity(a, b, window, "valid").mean().item()


def ssim_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity around each pixel (H, W); both sides at least 6."""
    return _similarity(a, b, SSIM_WINDOW, "same")[0].mean(0)


def _similarity(a: torch.Tensor, b: torch.Tensor, window: int, padding: str) -> torch.Tensor:
    batch_a, batch_b = (frame.permute(2, 0, 1)[None].contiguous() for frame in (a, b))
    return _metrics().ssim(batch_a, batch_b, window, padding=padding)  # (1, 3, H, W)


def _metrics():
    try:
        import kornia.metrics  # here: ComfyUI calls it non-essential, the other nodes load without
    except ImportError as error:
        raise RuntimeError(
            f"VCUT: expected the Python package kornia, could not import it ({error}). "
            "Install ComfyUI's requirements.txt again and restart ComfyUI."
        ) from error
    return kornia.metrics


def _are_of_one_shape(a: Video, b: Video) -> bool:
    """Whether the larger video, scaled to the smaller one's width, has its height or nearly so."""
    smaller, larger = sorted((a, b), key=lambda video: video.height * video.width)
    scaled = larger.height * smaller.width / larger.width
    return abs(scaled - smaller.height) <= max(0.5, SAME_SHAPE * smaller.height)


def _resize(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    batch = frame.permute(2, 0, 1)[None]
    resized = interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).clamp(0, 1)


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"
