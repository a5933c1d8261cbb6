"""The node that shows two videos side by side and says how far apart they are."""

import torch
from comfy_api.latest import io

from ..comfy_adapter import (
    node_id_of,
    page_shows_videos,
    save_animation,
    show_on_node,
    with_progress,
)
from ..plots.captions import clean
from ..plots.figures import missing_matplotlib
from ..plots.video_pictures import SideBySide, plot
from .page_hints import advanced, search_words
from .video_comparison import AlignedVideos, Scores, Video

DISPLAY_NAME = "VCUT Compare Videos"
SLIDER_FPS = 6  # of SVD, as SVD_img2vid_Conditioning has it by default


class CompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_CompareVideos",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Two videos side by side, where they differ, and by how much: PSNR and SSIM, frame "
                "by frame."
            ),
            inputs=[
                io.Image.Input(
                    "video_a", tooltip="The video to compare with, as frames: from VAE Decode."
                ),
                io.Image.Input(
                    "video_b",
                    tooltip="The other video. Another length: the frames that both have. A single "
                    "picture: compared with every frame. Another size of the same shape: the "
                    "larger one is resized.",
                ),
                io.String.Input(
                    "label_a", default="without VCUT", tooltip="Stands above video_a. May be empty."
                ),
                io.String.Input(
                    "label_b", default="with VCUT", tooltip="Stands above video_b. May be empty."
                ),
                io.Float.Input(
                    "difference_gain",
                    default=4.0,
                    min=1.0,
                    max=255.0,
                    step=0.5,
                    tooltip="How much brighter the difference is shown than it is. 1: as it is. "
                    "255: the smallest difference that a saved picture can have shows as white.",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="side_by_side",
                    tooltip="Both videos under their labels, for Create Video. Small videos are "
                    "enlarged.",
                ),
                io.Image.Output(
                    display_name="difference", tooltip="Black where the videos are equal."
                ),
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM of every frame."),
                io.String.Output(
                    display_name="summary", tooltip="The result in words, shown on the node too."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "compare", "difference", "psnr", "ssim"),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, video_a, video_b, label_a: str, label_b: str, difference_gain: float
    ) -> io.NodeOutput:
        labels = (clean(label_a), clean(label_b))
        try:
            side_by_side, *others = _compare(video_a, video_b, labels, difference_gain)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}.") from None
        videos = for_slider(side_by_side, labels) if page_shows_videos() else None
        show_on_node(others[-1].splitlines(), node_id_of(cls), videos)
        return io.NodeOutput(side_by_side.pictures, *others)


def for_slider(side_by_side: SideBySide, labels: tuple[str, str]) -> dict | None:
    """Write both videos into one file; return what the page's slider needs, None without it."""
    frames = map(side_by_side.edge_to_edge, range(len(side_by_side.pictures)))
    file = save_animation(frames, SLIDER_FPS)
    shape = side_by_side.width / side_by_side.height
    return file and {"file": file, "labels": labels, "aspect_ratio": shape}


def _compare(video_a, video_b, labels: tuple[str, str], gain: float) -> tuple:
    """Return the node's four outputs from one pass over the frames, the first as SideBySide."""
    videos = AlignedVideos(
        Video("video_a", labels[0], video_a), Video("video_b", labels[1], video_b)
    )
    size = (videos.num_frames, videos.height, videos.width)
    side_by_side = SideBySide(DISPLAY_NAME, labels, *size)
    difference = torch.empty(*size, 3)
    scores = Scores()
    for index, (a, b) in enumerate(with_progress(videos.frames(), videos.num_frames)):
        side_by_side.write(index, a, b)
        error = torch.sub(a, b, out=difference[index]).abs_()
        scores.add(a, b, error)
        error.mul_(gain).clamp_(max=1)
    result = scores.text(videos.width, videos.height, gain)
    heading = result.splitlines()[0].removesuffix(".")
    picture = plot(DISPLAY_NAME, labels, scores.psnr_db, scores.ssim, heading)
    notes = videos.notes()
    if reason := missing_matplotlib():
        notes.append(f"The plot is blank and the labels are left out {reason}")
    return side_by_side, difference, picture, "\n".join([result, *notes])
