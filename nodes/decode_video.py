"""The node that decodes a video as one, whatever memory is free."""

from comfy_api.latest import io

from ..comfy_adapter import decode, node_id_of, show_on_narrow_node
from ..vcut_core.video_decoding import AUTOMATIC, MAX_SLICES
from .latent_videos import frames_of
from .page_hints import search_words

DISPLAY_NAME = "VCUT Decode Video"


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_DecodeVideo",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Decodes all frames of a video together, in slices. VAE Decode takes as many "
                "frames at a time as fit, so its picture depends on the free memory and may "
                "flicker between them."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="The frames of one video, from the sampler."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the SVD checkpoint. One without a time axis decodes as "
                    "VAE Decode does.",
                ),
                io.Int.Input(
                    "slices",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=MAX_SLICES,
                    tooltip="Slices of the largest layers. 0: the fewest that fit into the free "
                    "memory. 1: whole. Higher: less memory, a little slower, the same picture.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The frames.")],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "vae decode", "memory", "vram", "low vram", "oom", "flicker"),
        )

    @classmethod
    def execute(cls, samples: dict, vae, slices: int) -> io.NodeOutput:
        if not AUTOMATIC <= slices <= MAX_SLICES:
            raise ValueError(
                f"{DISPLAY_NAME}: expected slices from {AUTOMATIC} (automatic) to {MAX_SLICES}, "
                f"got {slices}. Change it in the node."
            )
        try:
            decoded = decode(vae, frames_of(samples, "samples"), slices)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{DISPLAY_NAME}: {error}.") from error
        show_on_narrow_node(decoded.lines, node_id_of(cls))
        return io.NodeOutput(decoded.images)
