"""The node that ends classifier-free guidance at a step."""

from comfy_api.latest import io

from ..comfy_adapter import node_id_of, require_svd, with_technique
from ..vcut_core.guidance_cut import AFTER_CUT_MODES, MAX_STEPS, AfterCut, GuidanceConfig
from .page_hints import advanced, search_words

DISPLAY_NAME = "VCUT Guidance Scheduler"


class GuidanceScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_GuidanceScheduler",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Ends classifier-free guidance at a step: the steps from there on need one UNet "
                "evaluation instead of two."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SVD, SVD-XT or SVD-XT 1.1. Works before and after "
                    "VideoLinearCFGGuidance and VCUT Patch SVD Model.",
                ),
                io.Int.Input(
                    "cut_step",
                    default=17,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="First step without guidance, counted from 1. Lower is faster: 17 of "
                    "25 keeps the quality in the paper's tests, 10 loses some. 1: never guided. "
                    "Above steps: always guided, as without this node.",
                ),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="The schedule that cut_step counts in. When the sampler runs another "
                    "number of steps, the cut moves in proportion: 17 of 25 guides 13 of 20.",
                ),
                io.Combo.Input(
                    "after_cut",
                    options=list(AFTER_CUT_MODES),
                    default="average",
                    tooltip="How strongly the picture's content steers the steps after the cut. "
                    "average: half, as in the paper. positive: fully. none: not at all.",
                    **advanced(),
                ),
                io.Float.Input(
                    "cut_sigma",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.001,
                    round=1e-7,
                    tooltip="0: off. Above 0, guidance ends at the first evaluation whose sigma is "
                    "below it; cut_step, steps and start_step are ignored. For chained samplers "
                    "(KSampler Advanced), which see a slice of the schedule: copy the value that "
                    "a whole run reports. Above the first sigma (700): never guided.",
                    **advanced(),
                ),
                io.Int.Input(
                    "start_step",
                    default=1,
                    min=1,
                    max=MAX_STEPS,
                    optional=True,  # prompts made before it existed go on working
                    tooltip="First step with guidance, counted as cut_step is. 1: from the start. "
                    "Higher: the steps before it are unguided too, with the embedding that "
                    "after_cut names. An experiment of the paper; it changes the picture most.",
                    **advanced(),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model with scheduled guidance.")],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "video", "faster", "speed", "cfg", "guidance"),
        )

    @classmethod
    def execute(
        cls,
        model,
        cut_step: int,
        steps: int,
        after_cut: AfterCut,
        cut_sigma: float,
        start_step: int = 1,
    ) -> io.NodeOutput:
        require_svd(model, DISPLAY_NAME)
        try:
            config = GuidanceConfig(cut_step, steps, after_cut, cut_sigma, start_step)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}. Change it in the node.") from None
        return io.NodeOutput(with_technique(model, config, node_id_of(cls)))
