"""What a user chooses on the command line, put into a workflow.

Standard library only: the commands read it before anything is installed.
"""

import argparse
from dataclasses import dataclass, fields

from command_line import positive, whole_number

from private_comfyui import long_prompts, prompts
from private_comfyui.environments import HostError

TINY_SIDE = 64  # pixels: the width and height that the tiny SVD was trained at
TINY_FRAMES = 14
# As ComfyUI's nodes take them; refused here before a server is started for nothing.
STEPS = whole_number(1, 10_000)
PIXELS = whole_number(16, 16_384, step=8)
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom")


@dataclass(frozen=True)
class Choices:
    """What to change in a workflow; None leaves the workflow's own.

    frames: of the whole video; more than the model's own are made in parts. cut_step: the first
    without guidance, from 1. width, height: pixels. is_tiny: the tiny SVD in place of a checkpoint.
    """

    checkpoint: str | None = None
    frames: int | None = None
    steps: int | None = None
    cut_step: int | None = None
    width: int | None = None
    height: int | None = None
    is_tiny: bool = False

    @classmethod
    def read(cls, arguments: argparse.Namespace, is_tiny: bool) -> "Choices":
        """Return what ``add_options`` let the user choose."""
        names = {field.name for field in fields(cls)} - {"is_tiny"}
        return cls(is_tiny=is_tiny, **{name: getattr(arguments, name) for name in names})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each choice."""
    parser.add_argument("--checkpoint", help="an SVD checkpoint of ComfyUI; default: the tiny SVD")
    parser.add_argument(
        "--frames", type=positive, help="of the video; more than the model's own: continued"
    )
    parser.add_argument("--steps", type=STEPS, help="steps of the sampler")
    parser.add_argument("--cut-step", type=STEPS, help="first step without guidance, from 1")
    parser.add_argument("--width", type=PIXELS, help="pixels, a multiple of 8")
    parser.add_argument("--height", type=PIXELS, help="pixels, a multiple of 8")


def to_prompt(
    workflow: dict, choices: Choices, object_info: dict, image: str, seed: int
) -> tuple[dict, int | None]:
    """Return the workflow as a prompt for one video, with the choices in it.

    And the frames of the video, where it is longer than the model's own: the prompt has these.
    image: the name of an uploaded picture. Raises HostError for a checkpoint that the server of
    this ``object_info`` lacks, WorkflowError for a workflow that it cannot run.
    """
    prompt = prompts.to_prompt(workflow, object_info)
    prompt = prompts.without_comparison(prompt)  # the commands compare by themselves
    prompt, parts = long_prompts.first_part(prompt)
    width, height, frames = choices.width, choices.height, choices.frames
    own_frames = long_prompts.video_frames(prompt)
    if choices.is_tiny:
        prompts.replace_loader(prompt, "VCUT_LoadTinySVD")
        width, height, own_frames = width or TINY_SIDE, height or TINY_SIDE, TINY_FRAMES
    elif choices.checkpoint is not None:
        loader = object_info[prompts.STOCK_LOADER]["input"]["required"]
        check_checkpoint(choices.checkpoint, loader["ckpt_name"][0])
        for loader in (prompts.STOCK_LOADER, prompts.PRUNED_LOADER):
            prompts.set_inputs(prompt, loader, ckpt_name=choices.checkpoint)
    prompts.set_inputs(prompt, "LoadImage", image=image)
    prompts.set_inputs(
        prompt,
        long_prompts.CONDITIONING,
        width=width,
        height=height,
        video_frames=own_frames and min(own_frames, frames or own_frames),
    )
    if frames is None and own_frames and parts:
        frames = own_frames + parts * (own_frames - long_prompts.OVERLAP)
    for sampler in SAMPLERS:
        prompts.set_inputs(prompt, sampler, steps=choices.steps, seed=seed, noise_seed=seed)
    prompts.set_inputs(prompt, "VCUT_GuidanceScheduler", cut_step=choices.cut_step)
    return prompt, frames if own_frames and frames and frames > own_frames else None


def check_checkpoint(name: str, choices: list[str]) -> None:
    """Raise HostError, naming what there is, unless ``name`` is one of the choices."""
    if name not in choices:
        found = ", ".join(choices) if choices else "none"
        raise HostError(f"no checkpoint {name}. Choices: {found}.")
