"""The node that loads an SVD checkpoint without the weights that VCUT never needs."""

from comfy_api.latest import io

from ..comfy_adapter import LOADER, PRUNED_MODES, checkpoint_names, load_pruned, node_id_of
from ..vcut_core.cross_attention import CrossAttentionConfig, TemporalMode
from .page_hints import search_words


class LoadSVDCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_LoadSVDCheckpoint",
            display_name=LOADER,
            category="VCUT",
            description=(
                "Loads SVD without the 50 to 76 million weights that cannot change the picture. "
                "Takes the place of the Image Only checkpoint loader and of VCUT Patch SVD Model."
            ),
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoint_names(),
                    tooltip="An SVD, SVD-XT or SVD-XT 1.1 checkpoint in models/checkpoints.",
                ),
                io.Combo.Input(
                    "temporal",
                    options=list(PRUNED_MODES),
                    default="cached",
                    tooltip="The 16 cross-attentions over time. cached: same picture up to "
                    "rounding. remove: the paper's setting, fewest weights, changes the motion.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, cross-attentions evaluated once a run."),
                io.ClipVision.Output(tooltip="The image encoder, for SVD_img2vid_Conditioning."),
                io.Vae.Output(tooltip="The VAE."),
            ],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "video", "checkpoint", "memory", "low vram"),
        )

    @classmethod
    def execute(cls, ckpt_name: str, temporal: TemporalMode) -> io.NodeOutput:
        config = CrossAttentionConfig(temporal=temporal)
        return io.NodeOutput(*load_pruned(ckpt_name, config, node_id_of(cls)))
