"""One sampling run: its techniques, its wrappers around the host's calls, its report."""

import functools
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from ..vcut_core.run_report import RunReport
from ..vcut_core.technique import RunFacts, Technique, chain, has_hook
from ..vcut_core.techniques import create_techniques
from .conds_call import conds_call, evaluate_conds
from .feedback import send_run_event, show_on_narrow_node
from .finished_runs import keep_report
from .memory_estimate import HostMemory, memory_estimate_installed
from .other_patches import has_only_own_wrapper
from .prediction_call import prediction_call
from .settings import KEY, VCUTSettings, settings_of
from .torch_compile import compiled_module, uncompiled
from .unet_in_run import UNetInRun, with_options

logger = logging.getLogger(__name__)


def sample_with_vcut(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: create the run's state, sample, report the run, discard the state."""
    guider = executor.class_obj
    shared_options = guider.model_options
    settings = settings_of(shared_options)
    if settings is None:
        return executor(*args, **kwargs)
    patcher = guider.model_patcher
    noise = args[0] if args else kwargs["noise"]
    run = SamplingRun(settings, run_facts(patcher, noise.shape, shared_options))
    guider.model_options = run.options_with_wrappers(shared_options)
    try:
        with memory_estimate_installed(patcher.model, run.memory_required()):
            output = executor(*args, **kwargs)
        run.finish(output)
        return output
    finally:
        guider.model_options = shared_options
        try:
            run.report()
        except Exception:  # a report that fails must not cost the user the result, or hide an error
            logger.exception("VCUT: could not report the run")


def run_facts(patcher, latent_shape, model_options: dict) -> RunFacts:
    """Return what is known of a run over ``latent_shape``, (frames, 4, H, W), before loading."""
    handler = model_options.get("context_handler")  # samples windows of the video
    return RunFacts(
        latent_shape=tuple(latent_shape),
        num_frames=min(latent_shape[0], getattr(handler, "context_length", latent_shape[0])),
        memory=HostMemory(patcher, model_options["transformer_options"]),
        num_other_gpus=len(patcher.get_additional_models_with_key("multigpu")),
    )


class SamplingRun:
    """State of one sampling run: made when it starts, discarded when it ends."""

    def __init__(self, settings: VCUTSettings, facts: RunFacts) -> None:
        self._node_ids = settings.node_ids
        facts = replace(facts, announce=functools.partial(_announce, settings.node_ids))
        self.techniques = create_techniques(settings.configs, facts)
        self.counts = RunReport(self.techniques)
        self._unets: dict[torch.nn.Module, UNetInRun] = {}
        self._installed = ExitStack()
        self._sampler: Any = None  # the host's, once it is known
        self._schedule: tuple[Any, tuple[float, ...]] = (None, ())  # on the device, and read
        self._started_at: float | None = None  # of the first evaluation: loading is not sampling
        self._output: Any = None  # the latent, once it is complete

    def memory_required(self):
        """Return (rows, size) -> bytes that the host is to plan with, None for its own estimate."""
        estimating = [t for t in self.techniques if has_hook(t, "memory_required")]

        def required(rows: int, size: tuple[int, int]) -> float | None:
            answers = (technique.memory_required(rows, size) for technique in estimating)
            return next((answer for answer in answers if answer is not None), None)

        return required if estimating else None

    def options_with_wrappers(self, model_options: dict) -> dict:
        """Return a copy of ``model_options`` with this run's wrappers in it.

        Added now, they come after all others, so they count what really reaches the model; but the
        one around predictions comes before them, so that a predicted step reaches nobody.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        if any(has_hook(technique, "around_prediction") for technique in self.techniques):
            wrappers = options["transformer_options"].setdefault("wrappers", {})
            others = wrappers.get(WrappersMP.PREDICT_NOISE, {})
            wrappers[WrappersMP.PREDICT_NOISE] = {KEY: [self.predict_noise], **others}
        for kind, wrapper in (
            (WrappersMP.SAMPLER_SAMPLE, self.sampler_sample),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
            (WrappersMP.DIFFUSION_MODEL, self.diffusion_model),
        ):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, options, is_model_options=True
            )
        return options

    def sampler_sample(self, executor, guider, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper: runs after loading, when object patches are in place."""
        self._sampler = getattr(executor, "class_obj", None)
        unet = guider.inner_model.diffusion_model
        modules = unet.modules() if isinstance(unet, torch.nn.Module) else ()
        # Another pack may have wrapped the UNet, or put an engine of its own there.
        found = next((module for module in modules if isinstance(module, UNetModel)), None)
        with self._installed:
            self._installed.callback(self._unets.clear)
            if found is not None:
                self._unet_in_run(found)
            return executor(guider, *args, **kwargs)

    def predict_noise(self, executor, x, timestep, *args, **kwargs):
        """PREDICT_NOISE wrapper: let the techniques answer the sampler, or the guider."""
        model_options = args[0] if args else kwargs.get("model_options", {})
        if "sample_sigmas" not in model_options.get("transformer_options", {}):
            return executor(x, timestep, *args, **kwargs)  # asked by someone outside of sampling
        schedule = model_options["transformer_options"]["sample_sigmas"]
        call = prediction_call(
            executor.class_obj,
            x,
            timestep,
            model_options,
            self.techniques,
            lambda: self.counts.unet_evaluations + self.counts.evaluations_saved,
            lambda: self._read(schedule),
            self._sampler,
        )

        def predict(_call):
            return executor(x, timestep, *args, **kwargs)

        return chain(self.techniques, "around_prediction", predict)(call)

    def _read(self, schedule: torch.Tensor) -> tuple[float, ...]:
        """Return a schedule's sigmas, read from the device once: reading waits for it."""
        if self._schedule[0] is not schedule:
            self._schedule = (schedule, tuple(schedule.tolist()))
        return self._schedule[1]

    def calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options, *args, **kw):
        """CALC_COND_BATCH wrapper: let the techniques decide which conds are evaluated, and how."""
        self._started_at = self._started_at or time.perf_counter()

        def evaluate(call):
            return evaluate_conds(
                call,
                lambda present, options: executor(
                    model, present, x_in, timestep, options, *args, **kw
                ),
                conds,
                model_options,
            )

        call = conds_call(conds, x_in, timestep, model_options)
        return chain(self.techniques, "around_conds", evaluate)(call)

    def apply_model(self, executor, *args, **kwargs):
        """APPLY_MODEL wrapper: count and prepare here what torch.compile would trace below."""
        unet = compiled_module(executor.class_obj.diffusion_model)
        options = _transformer_options(args, kwargs)
        if unet is None or not has_only_own_wrapper(WrappersMP.DIFFUSION_MODEL, options):
            return executor(*args, **kwargs)
        self._count_evaluations(options)
        x = args[0] if args else kwargs["x"]
        prepared = self._unet_in_run(unet).prepare_compiled_call(x, options)
        args, kwargs = with_options(args, kwargs, options, prepared)
        return executor(*args, **kwargs)

    def diffusion_model(self, executor, *args, **kwargs):
        """DIFFUSION_MODEL wrapper: count UNet evaluations, prepare the call."""
        options = _transformer_options(args, kwargs)
        self._count_evaluations(options)
        unet = self._unet_in_run(executor.class_obj)
        is_compiling = torch.compiler.is_compiling()
        args, kwargs = unet.prepare_call(executor, args, kwargs, options, is_compiling)
        return executor(*args, **kwargs)

    @uncompiled  # a count is a constant to torch.compile: it would compile every call
    def _count_evaluations(self, transformer_options: dict) -> None:
        self.counts.unet_evaluations += len(transformer_options.get("cond_or_uncond", (0,)))

    @uncompiled
    def _unet_in_run(self, unet: torch.nn.Module) -> UNetInRun:
        """Return the state of a UNet; the first call for one installs its forwards."""
        if unet not in self._unets:
            found = UNetInRun(unet, self.techniques, is_copy=bool(self._unets))
            self._unets[unet] = self._installed.enter_context(found)
        return self._unets[unet]

    def finish(self, output) -> None:
        """Mark the run as complete once ``output`` is computed, so that the seconds are true."""
        if isinstance(output, torch.Tensor) and output.numel():
            output.flatten()[0].item()
        self.counts.is_complete = True
        self._output = output

    def report(self) -> None:
        """Log the run in one line, show each node its facts, send the counts, keep the report."""
        if self._started_at is not None:
            self.counts.elapsed_s = time.perf_counter() - self._started_at
        for technique in self.techniques:
            technique.finish(self.counts.is_complete)
        logger.info("VCUT: %s", self.counts.log_line())
        lines = {}
        for technique in self.techniques:
            node_id = self._node_ids.get(technique.key)
            if node_id is not None:
                lines[node_id] = self.counts.node_lines(technique)
                show_on_narrow_node(lines[node_id], node_id)
        send_run_event(lines, self.counts.log_line(), self.counts.data())
        if self.counts.is_complete:
            keep_report(self._output, self._node_ids, self.counts.lines())


def _announce(node_ids: Mapping[str, str | None], technique: Technique, lines: list[str]) -> None:
    show_on_narrow_node(["running", *lines], node_ids.get(technique.key))


def _transformer_options(args: tuple, kwargs: dict) -> dict:
    options = kwargs.get("transformer_options")
    if options is not None:
        return options
    return next((a for a in args if isinstance(a, dict) and "cond_or_uncond" in a), {})
