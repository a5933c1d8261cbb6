"""The node that says what a run costs before it runs, and what this model's VCUT settings save."""

from typing import Any

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, read_model, require_svd, show_on_node
from ..plots.cost_picture import draw_costs
from ..plots.figures import missing_matplotlib
from ..vcut_core.cost_report import headline, report_lines, unit_for
from ..vcut_core.guidance_cut import MAX_STEPS
from .latent_videos import frames_of
from .page_hints import search_words

DISPLAY_NAME = "VCUT Cost Report"
MIN_SIZE = 16  # of SVD_img2vid_Conditioning, in pixels
MAX_SIZE = 16384
MAX_FRAMES = 4096


class CostReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_CostReport",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "What the UNet computes in a run, without VCUT and with this model's VCUT "
                "settings, counted layer by layer before the run. Takes about a second and no "
                "memory."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SVD, SVD-XT or SVD-XT 1.1, as it goes to the sampler: the report "
                    "reads the settings that VCUT's nodes left on it. It is not changed.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=MIN_SIZE,
                    max=MAX_SIZE,
                    step=8,
                    tooltip="Of the video in pixels, as in SVD_img2vid_Conditioning.",
                ),
                io.Int.Input(
                    "height",
                    default=576,
                    min=MIN_SIZE,
                    max=MAX_SIZE,
                    step=8,
                    tooltip="Of the video in pixels, as in SVD_img2vid_Conditioning.",
                ),
                io.Int.Input(
                    "video_frames",
                    default=25,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames of the video: 14 for SVD, 25 for SVD-XT.",
                ),
                io.Int.Input(
                    "steps", default=25, min=1, max=MAX_STEPS, tooltip="Steps of the sampler."
                ),
                io.Latent.Input(
                    "samples",
                    optional=True,
                    tooltip="The latent that goes to the sampler. When it is linked, width, height "
                    "and video_frames are read from it and those of the node do not count.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report", tooltip="The report, shown on the node too."
                ),
                io.Image.Output(
                    display_name="picture", tooltip="What the run costs and where it goes."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "cost", "speed", "memory", "vram", "flops"),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, width: int, height: int, video_frames: int, steps: int, samples=None
    ) -> io.NodeOutput:
        require_svd(model, DISPLAY_NAME)
        if samples is None:
            width = _whole_number("width", width, MIN_SIZE, MAX_SIZE)
            height = _whole_number("height", height, MIN_SIZE, MAX_SIZE)
            video_frames = _whole_number("video_frames", video_frames, 1, MAX_FRAMES)
        else:
            width, height, video_frames = _size_of(samples)
        steps = _whole_number("steps", steps, 1, MAX_STEPS)
        reading = read_model(model, width, height, video_frames, steps)
        run = reading.run()
        size = f"{width}x{height}, {video_frames} frame{'s' if video_frames > 1 else ''}"
        lines = report_lines(
            run,
            size if samples is None else f"{size} (read from samples)",
            reading.parameters,
            reading.cache_bytes(),
            reading.other_patches,
            reading.peak,
        )
        report = "\n".join(lines)
        if reason := missing_matplotlib():
            report += f"\nThe picture is blank {reason}"
        show_on_node(report.splitlines(), node_id_of(cls))
        unit, unit_name = unit_for(run.macs_without())
        picture = draw_costs(
            DISPLAY_NAME,
            f"{size}, {steps} step{'s' if steps > 1 else ''}",
            headline(run, reading.peak),
            _in_unit(run.macs_by_component_without(), unit),
            _in_unit(run.macs_by_component(), unit),
            unit_name,
        )
        return io.NodeOutput(report, picture)


def _size_of(samples: dict) -> tuple[int, int, int]:
    """Return width and height in pixels, and the frames. To the host a latent is one video."""
    try:
        num_frames, _channels, height, width = frames_of(samples, "samples").shape
    except ValueError as error:
        raise ValueError(f"{DISPLAY_NAME}: {error}.") from None
    return 8 * width, 8 * height, num_frames


def _whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return ``value`` as an int. ComfyUI checks a widget's range, but not that of a linked value.

    Raises ValueError when it is not a whole number from ``low`` to ``high``.
    """
    is_number = isinstance(value, (int, float))
    if is_number and low <= value <= high and value == int(value):
        return int(value)
    got = value if is_number else type(value).__name__
    raise ValueError(
        f"{DISPLAY_NAME}: expected {name} to be a whole number from {low} to {high}, got {got}. "
        f"Change {name} in the node or the value that is linked to it."
    )


def _in_unit(costs: dict[str, int], unit: float) -> dict[str, float]:
    return {name: macs / unit for name, macs in costs.items()}
