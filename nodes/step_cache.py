"""The node that leaves out the sampler's steps that tell nothing new."""

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, require_svd, with_technique
from ..vcut_core.step_cache import PACES, Pace, StepCacheConfig
from .page_hints import search_words

DISPLAY_NAME = "VCUT Step Cache"


class StepCacheNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_StepCache",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Computes only the steps in which the picture turns, and predicts the others: "
                "about half of 25 steps."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SVD, SVD-XT or SVD-XT 1.1. Works before and after guidance nodes and "
                    "the other VCUT nodes.",
                ),
                io.Combo.Input(
                    "pace",
                    options=list(PACES),
                    default=next(iter(PACES)),
                    tooltip="How many of 25 karras steps are computed, and how far the picture "
                    "moves on our tiny SVD, of 255 levels (another seed: 4). balanced: 14, 0.06. "
                    "careful: 16, 0.01. fast: 12, 0.08, and more where the motion is uncertain.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, with steps left out.")],
            hidden=[io.Hidden.unique_id],
            **search_words(
                "svd", "video", "faster", "speed", "fewer steps", "easycache", "teacache"
            ),
        )

    @classmethod
    def execute(cls, model, pace: Pace) -> io.NodeOutput:
        require_svd(model, DISPLAY_NAME)
        try:
            config = StepCacheConfig(pace)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}. Change it in the node.") from None
        return io.NodeOutput(with_technique(model, config, node_id_of(cls)))
