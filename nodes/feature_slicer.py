"""The node that lets SVD run its layers slice by slice."""

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, require_svd, with_technique
from ..vcut_core.feature_slicing import SCOPES, Scope, SlicingConfig
from ..vcut_core.slicing_memory import AUTOMATIC, MAX_SLICES
from .page_hints import search_words

DISPLAY_NAME = "VCUT Feature Slicer"


class FeatureSlicer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_FeatureSlicer",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Runs SVD's layers slice by slice: the same picture in a fraction of the memory, "
                "and ComfyUI is told how little it needs."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SVD, SVD-XT or SVD-XT 1.1. Works before and after LoRA loaders, "
                    "guidance nodes and the other VCUT nodes.",
                ),
                io.Int.Input(
                    "slices",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=MAX_SLICES,
                    tooltip="Slices of the largest layers; smaller layers are cut into fewer. 0: "
                    "the fewest that fit into the free memory when a run starts. 1: off. Higher: "
                    "less memory, a little slower; more than there are rows is the same as rows.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default=SCOPES[0],
                    tooltip="blocks: the transformer blocks, which take most; other packs' patches "
                    "outside of them see what they always saw. everything: the residual blocks and "
                    "upsampling too, for the least memory. feed_forward: the largest layer alone, "
                    "also beside packs that patch attention.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, run in slices.")],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "video", "memory", "vram", "low vram", "oom", "out of memory"),
        )

    @classmethod
    def execute(cls, model, slices: int, scope: Scope) -> io.NodeOutput:
        require_svd(model, DISPLAY_NAME)
        try:
            config = SlicingConfig(slices, scope)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}. Change it in the node.") from None
        return io.NodeOutput(with_technique(model, config, node_id_of(cls)))
