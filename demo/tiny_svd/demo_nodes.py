"""The demo's two nodes: the tiny SVD's loader, and a counter that proves what VCUT says."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def watch_evaluations(unet, on_evaluation: Callable[[list[int]], None]) -> Iterator[None]:
    """Call ``on_evaluation`` with cond_or_uncond whenever the UNet really computes.

    By hooks on its modules, apart from the wrappers that VCUT and others use: a call that a step
    cache answers never reaches ``time_embed``.
    """
    called_with = []

    def note_call(_unet, _inputs, options) -> None:
        called_with[:] = options["transformer_options"]["cond_or_uncond"]

    hooks = [
        unet.register_forward_pre_hook(note_call, with_kwargs=True),
        unet.time_embed.register_forward_pre_hook(lambda *_: on_evaluation(list(called_with))),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _count_run(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: count one run and send the counts to the client."""
    times, evaluations = [], 0

    def count(cond_or_uncond: list[int]) -> None:
        nonlocal evaluations
        times.append(time.perf_counter())
        evaluations += len(cond_or_uncond)

    with watch_evaluations(executor.class_obj.model_patcher.model.diffusion_model, count):
        output = executor(*args, **kwargs)
    output.flatten()[0].item()  # wait for the device
    result = {"evaluations": evaluations, "elapsed_s": time.perf_counter() - times[0]}
    server = PromptServer.instance
    server.send_sync("vcut_demo.run", result, server.client_id)
    return output


class TinySVDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadTinySVD, CountEvaluations]
