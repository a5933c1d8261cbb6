"""The node that puts a continuation behind its video."""

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, show_on_narrow_node
from ..vcut_core.continuation import join_videos, kept_frames
from .continue_video import OVERLAP
from .latent_videos import frames_of
from .page_hints import search_words

DISPLAY_NAME = "VCUT Join Videos"


class JoinVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_JoinVideos",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Puts the new frames of a continuation behind the video that it continues, which "
                "stays as it is."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="The video so far."),
                io.Latent.Input(
                    "continuation",
                    tooltip="What the sampler made of the latent of VCUT Continue Video.",
                ),
                io.Int.Input(
                    "overlap",
                    default=OVERLAP,
                    min=1,
                    max=4095,
                    tooltip="That of VCUT Continue Video: so many frames are in both.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The longer video.")],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "longer", "long video", "concatenate"),
        )

    @classmethod
    def execute(cls, samples: dict, continuation: dict, overlap: int) -> io.NodeOutput:
        try:
            video, new = frames_of(samples, "samples"), frames_of(continuation, "continuation")
            _check_overlap(continuation, overlap)
            joined = join_videos(video, new, overlap)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}.") from None
        line = f"{len(video)} + {len(new) - overlap} = {len(joined)} frames"
        show_on_narrow_node([line], node_id_of(cls))
        return io.NodeOutput({"samples": joined})


def _check_overlap(continuation: dict, overlap: int) -> None:
    """Raise ValueError when the sampler was given another overlap, whose mask it hands on."""
    mask = continuation.get("noise_mask")
    # One of fewer frames is another node's, for all of them.
    if mask is None or len(mask) != len(continuation["samples"]):
        return
    kept = kept_frames(mask)
    if kept not in (0, overlap):
        raise ValueError(
            f"expected the overlap of VCUT Continue Video, {kept}, got {overlap}. Set it to {kept}"
        )
