"""Reads, compares and writes videos as arrays of shape (T, H, W, 3), uint8."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 4  # pixels between pictures
TEXT = 16  # pixels: the size of a title, at least
TEXTS_IN_WIDTH = 55  # of a wide picture: a README shows 1820 pixels on 830, a title on 15


def read_frames(paths: list[Path]) -> np.ndarray:
    """Return the pictures in order as one video."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, ...]) -> np.ndarray:
    """Return one video with both, titled; small videos enlarged so that they can be seen.

    titles: of one number of lines each.
    """
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
    column = width + MARGIN
    heading = _heading(titles, column, len(frames) * column)
    row = Image.new("RGB", (heading.width, heading.height + height + MARGIN), "white")
    row.paste(heading)
    for index, frame in enumerate(frames):
        row.paste(Image.fromarray(frame), (index * column, heading.height))
    return np.asarray(row)


def _heading(titles: tuple[str, ...], column: int, width: int) -> Image.Image:
    size = max(TEXT, width // TEXTS_IN_WIDTH)
    font = ImageFont.load_default(size)
    height = max(round(size * 1.3) * len(title.splitlines()) for title in titles)
    heading = Image.new("RGB", (width, height + MARGIN), "white")
    for index, title in enumerate(titles):
        place = (index * column + MARGIN, MARGIN // 2)
        ImageDraw.Draw(heading).text(place, title, "black", font, spacing=round(size * 0.2))
    return heading
