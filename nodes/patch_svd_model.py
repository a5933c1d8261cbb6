"""The node that replaces SVD's cross-attentions by affine maps evaluated once a run."""

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, require_svd, with_technique
from ..vcut_core.cross_attention import (
    SPATIAL_MODES,
    TEMPORAL_MODES,
    CrossAttentionConfig,
    SpatialMode,
    TemporalMode,
)
from .page_hints import search_words

DISPLAY_NAME = "VCUT Patch SVD Model"


class PatchSVDModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_PatchSVDModel",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Makes every step of Stable Video Diffusion cheaper: its cross-attentions see a "
                "single image token, so each is evaluated once a run and reused."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SVD, SVD-XT or SVD-XT 1.1, from the Image Only checkpoint loader. "
                    "LoRA loaders and guidance nodes may stand before or after this node.",
                ),
                io.Combo.Input(
                    "temporal",
                    options=list(TEMPORAL_MODES),
                    default="cached",
                    tooltip="The 16 cross-attentions over time. cached: same picture, evaluated "
                    "once a run. remove: the paper's setting, changes the motion. "
                    "keep: as without this node.",
                ),
                io.Combo.Input(
                    "spatial",
                    options=list(SPATIAL_MODES),
                    default="cached",
                    tooltip="The 16 cross-attentions within a frame. cached: same picture, "
                    "evaluated once a run. keep: as without this node.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model with cheaper cross-attentions.")],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "stable video diffusion", "image to video", "faster", "speed"),
        )

    @classmethod
    def execute(cls, model, temporal: TemporalMode, spatial: SpatialMode) -> io.NodeOutput:
        require_svd(model, DISPLAY_NAME)
        try:
            config = CrossAttentionConfig(temporal=temporal, spatial=spatial)
            return io.NodeOutput(with_technique(model, config, node_id_of(cls)))
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}. Change it in the node.") from None
