"""The demo's two nodes: the tiny SVD's loader, and a counter that proves what VCUT says."""

import time

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from .loader import load_tiny_svd


class LoadTinySVD(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_LoadTinySVD",
            display_name="VCUT Load Tiny SVD (demo)",
            category="VCUT/demo",
            description="A model of SVD's architecture, small enough for the demo and the tests.",
            inputs=[],
            outputs=[io.Model.Output(), io.ClipVision.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_tiny_svd())


class CountEvaluations(io.ComfyNode):
    """Counts UNet evaluations and times the sampling, with or without VCUT, on its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_CountEvaluations",
            display_name="VCUT Count Evaluations (demo)",
            category="VCUT/demo",
            description="Sends the UNet evaluations and seconds of a run to the demo's client.",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "vcut_demo", _count_run)
        return io.NodeOutput(clone)


def _count_run(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: count with a hook on the UNet, apart from all that VCUT uses."""
    unet = executor.class_obj.model_patcher.model.diffusion_model
    counts = {"evaluations": 0, "started_at": None}

    def count(_unet, _inputs, options) -> None:
        counts["started_at"] = counts["started_at"] or time.perf_counter()
        counts["evaluations"] += len(options["transformer_options"]["cond_or_uncond"])

    hook = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        output = executor(*args, **kwargs)
        output.flatten()[0].item()  # wait for the device
        elapsed_s = time.perf_counter() - counts["started_at"]
        server = PromptServer.instance
        result = {"evaluations": counts["evaluations"], "elapsed_s": elapsed_s}
        server.send_sync("vcut_demo.run", result, server.client_id)
        return output
    finally:
        hook.remove()


class TinySVDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadTinySVD, CountEvaluations]
