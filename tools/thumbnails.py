"""Thumbnails of workflows: the graph as ComfyUI draws it, above a video that the tiny SVD made."""

import tempfile
from pathlib import Path

import numpy as np
import videos
from comfy_page import whole_graph
from PIL import Image
from private_comfyui import prompts
from private_comfyui.install import DEMO

WIDTH = 800  # pixels
TINY = {"width": 64, "height": 64, "video_frames": 14}  # what the tiny SVD was trained at
CAPTION = "from the tiny SVD that this pack trains, 64x64 pixels"


def save_thumbnail(page, server, workflow: dict, path: Path) -> None:
    """Save a small picture of the graph in the page and of what it makes with the tiny SVD."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "graph.png"
        with whole_graph(page, large):
            pass
        drawn = _narrowed(Image.open(large).convert("RGB"))
    strip = _narrowed(videos.contact_sheet([_video(server, workflow)], [CAPTION]))
    Image.fromarray(np.concatenate([drawn, strip])).save(path, quality=88, optimize=True)


def _video(server, workflow: dict) -> np.ndarray:
    """Return the video (T, H, W, 3) of the workflow with its model replaced by the tiny SVD."""
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
        return videos.read_frames(paths)


def _narrowed(picture: Image.Image) -> Image.Image:
    height = round(picture.height * WIDTH / picture.width)
    return picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
