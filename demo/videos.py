"""Reads, compares and writes videos as arrays of shape (T, H, W, 3), uint8."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

MARGIN = 4  # pixels between pictures
HEADING = 14  # pixels above them


def read_frames(paths: list[Path]) -> np.ndarray:
    """Return the pictures in order as one video."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, ...]) -> np.ndarray:
    """Return one video with both, titled; small videos enlarged so that they can be seen."""
    left, right = _enlarge(left), _enlarge(right)
    return np.stack([_row([a, b], titles) for a, b in zip(left, right, strict=True)])


def contact_sheet(videos: list[np.ndarray], titles: list[str], columns: int = 7) -> Image.Image:
    """Return a sheet with a row of evenly chosen frames for each video."""
    rows = []
    for video, title in zip(videos, titles, strict=True):
        chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
        rows.append(_row(list(_enlarge(video)[chosen]), (title,)))
    return Image.fromarray(np.concatenate(rows))


def write_mp4(path: Path, video: np.ndarray, fps: int) -> None:
    """Write a video as H.264, sides cut to even numbers as the codec asks."""
    video = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode())


def _enlarge(video: np.ndarray, smallest: int = 256) -> np.ndarray:
    factor = max(1, smallest // max(video.shape[1:3]))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _row(frames: list[np.ndarray], titles: tuple[str, ...]) -> np.ndarray:
    """Return frames side by side on white, with titles above the first ones."""
    height, width = frames[0].shape[:2]
    row = Image.new("RGB", (len(frames) * (width + MARGIN), height + HEADING + MARGIN), "white")
    for index, frame in enumerate(frames):
        row.paste(Image.fromarray(frame), (index * (width + MARGIN), HEADING))
    for index, title in enumerate(titles):
        ImageDraw.Draw(row).text((index * (width + MARGIN) + 2, 1), title, fill="black")
    return np.asarray(row)
