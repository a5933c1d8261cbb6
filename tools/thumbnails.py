"""Thumbnails of workflows: frames of a video that the tiny SVD made with it, and a large caption.

The template browser shows a square card of 254 pixels at least, less than a third of these.
"""

import tempfile
from pathlib import Path

import numpy as np
import videos
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from private_comfyui import prompts
from private_comfyui.install import DEMO

WIDTH = 840  # pixels, and the height
COLUMNS, ROWS = 4, 2  # of frames
MARGIN = 36
CAPTION, FIGURE, SOURCE = 120, 56, 41  # pixels of a font; 12 on a card at least
GROUND, TEXT, ACCENT, QUIET = "#0f1b2d", "#f4f7fb", "#35d07f", "#b9c4d3"
TINY = {"width": 64, "height": 64, "video_frames": 14}  # what the tiny SVD was trained at


def save_thumbnail(server, workflow: dict, caption: str, figure: str, path: Path) -> None:
    """Save the card of a workflow. caption, figure: two or three words each."""
    picture = Image.new("RGB", (WIDTH, WIDTH), GROUND)
    side = WIDTH // COLUMNS
    for place, frame in enumerate(_frames(server, workflow)):
        large = Image.fromarray(frame).resize((side - 4, side - 4), Image.Resampling.LANCZOS)
        picture.paste(large, (place % COLUMNS * side + 2, place // COLUMNS * side + 2))
    draw, top = ImageDraw.Draw(picture), ROWS * side
    draw.text((MARGIN, top + 150), caption, TEXT, _font(CAPTION, "-Bold"), anchor="ls")
    draw.text((MARGIN, top + 260), figure, ACCENT, _font(FIGURE, "-Bold"), anchor="ls")
    draw.text((MARGIN, top + 360), "frames: our tiny SVD", QUIET, _font(SOURCE), anchor="ls")
    picture.save(path, quality=88, optimize=True)


def _frames(server, workflow: dict) -> np.ndarray:
    """Return frames at even distances of what the workflow makes with the tiny SVD."""
    prompt = prompts.to_prompt(workflow, server.get("/object_info"))
    prompt = prompts.without_comparison(prompt)
    prompts.replace_loader(prompt, "VCUT_LoadTinySVD")
    picture = server.upload(DEMO / "tiny_svd" / "example_input.png")
    prompts.set_inputs(prompt, "LoadImage", image=picture)
    prompts.set_inputs(prompt, "SVD_img2vid_Conditioning", **TINY)
    prompts.set_inputs(prompt, "VCUT_ContinueVideo", video_frames=TINY["video_frames"])
    prompts.add_frames_output(prompt)
    files = server.run(prompt).files["frames"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [server.fetch(file, Path(folder) / f"{k:03}.png") for k, file in enumerate(files)]
        video = videos.read_frames(paths)
    return video[np.linspace(0, len(video) - 1, COLUMNS * ROWS).round().astype(int)]


def _font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{style}.ttf", size)
