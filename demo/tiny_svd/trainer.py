"""Runs the steps of one training stage: resumable, logged, the same again for the same seed."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from command_line import progress_bar
from torch.nn.attention import SDPBackend, sdpa_kernel

CHECKPOINT_EVERY_S = 180
WARM_UP_STEPS = 100
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Stage:
    """One network's training: where it is kept, how long it goes on, how fast it learns.

    flat: the part of the steps at the full learning rate; then it falls to zero along a cosine.
    """

    name: str
    folder: Path
    steps: int
    learning_rate: float
    flat: float = 0.0
    ema_decay: float = 0.0
    minutes: float = math.inf
    weight_decay: float = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        fall = max(0.0, (step / self.steps - self.flat) / (1 - self.flat))
        return self.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(fall, 1.0)))


class Stop:
    """Becomes true on SIGTERM or Ctrl-C, or when the minutes are over."""

    def __init__(self, minutes: float):
        self.deadline = time.monotonic() + 60 * minutes
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked or time.monotonic() > self.deadline


@contextlib.contextmanager
def autocast():
    """Be the context in which networks are evaluated while training.

    On a CPU plain attention, as the fused one's backward pass takes twice the whole step; and bf16
    only with AVX-512, as a convolution over time takes 15 times as long in it elsewhere.
    """
    is_cpu = DEVICE.type == "cpu"
    backends = [SDPBackend.MATH] if is_cpu else list(SDPBackend.__members__.values())
    is_bf16_fast = not is_cpu or torch.cpu.get_capabilities().get("avx512_bw", False)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=is_bf16_fast), sdpa_kernel(backends):
        yield


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the randomness of one step, which a resumed run finds again."""
    return torch.Generator().manual_seed(seed * 10_000_000 + step)


def train(stage: Stage, module: torch.nn.Module, loss_of: Callable[[int], dict]) -> bool:
    """Train until the stage's last step. Returns whether it got there.

    loss_of(step) returns {"loss": scalar tensor, further scalars to log}.
    """
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(
        parameters, betas=(0.9, 0.99), weight_decay=stage.weight_decay, fused=True
    )
    ema = {name: value.clone() for name, value in module.state_dict().items()}
    first, seconds = _resume(stage, module, optimiser, ema)
    stop, saved_at, started = Stop(stage.minutes), time.monotonic(), time.monotonic() - seconds
    bar_of_stage = progress_bar(stage.name, stage.steps, initial=first)
    with (stage.folder / "losses.jsonl").open("a") as log, bar_of_stage as bar:
        for step in range(first, stage.steps):
            values = _one_step(stage, step, parameters, optimiser, loss_of)
            if stage.ema_decay:
                _update_ema(ema, module, min(stage.ema_decay, (1 + step) / (10 + step)))
            elapsed = time.monotonic() - started
            if step % 10 == 0 or step == stage.steps - 1:
                values = {name: float(value) for name, value in values.items()}
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
                line = {"stage": stage.name, "step": step, "seconds": round(elapsed, 1), **values}
                log.write(json.dumps(line) + "\n")
                log.flush()
            is_due = time.monotonic() - saved_at > CHECKPOINT_EVERY_S
            if is_due or stop or step == stage.steps - 1:
                _save(stage, module, optimiser, ema, step + 1, elapsed)
                saved_at = time.monotonic()
            bar.update()
            if stop:
                return step == stage.steps - 1
    return True


def _one_step(stage, step, parameters, optimiser, loss_of) -> dict:
    for group in optimiser.param_groups:
        group["lr"] = stage.rate(step)
    values = loss_of(step)
    optimiser.zero_grad(set_to_none=True)
    values["loss"].backward()
    values["gradient"] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def _update_ema(ema: dict, module, decay: float) -> None:
    values = module.state_dict()
    torch._foreach_lerp_(list(ema.values()), [values[name] for name in ema], 1 - decay)


def _save(stage, module, optimiser, ema, step: int, seconds: float) -> None:
    content = {
        "step": step,
        "seconds": seconds,
        "module": module.state_dict(),
        "ema": ema,
        "optimiser": optimiser.state_dict(),
    }
    partial = stage.checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, stage.checkpoint)  # an interrupted run never leaves half a checkpoint


def _resume(stage, module, optimiser, ema) -> tuple[int, float]:
    with contextlib.suppress(FileNotFoundError):
        content = torch.load(stage.checkpoint, map_location=next(module.parameters()).device)
        module.load_state_dict(content["module"])
        optimiser.load_state_dict(content["optimiser"])
        for name, value in content["ema"].items():
            ema[name].copy_(value)
        return content["step"], content["seconds"]
    return 0, 0.0


def load_trained(stage: Stage, module: torch.nn.Module) -> torch.nn.Module:
    """Load a stage's weights, averaged ones where it keeps them. Raises FileNotFoundError."""
    content = torch.load(stage.checkpoint, map_location="cpu")
    module.load_state_dict(content["ema" if stage.ema_decay else "module"])
    return module
