"""One headless ComfyUI server for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from private_comfyui import prompts
from private_comfyui.install import DEMO, current_host
from private_comfyui.serve import ComfyServer

EXAMPLE_IMAGE = DEMO / "tiny_svd" / "example_input.png"


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    with ComfyServer(current_host()) as server:
        yield server


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    return server.get("/object_info")


@pytest.fixture
def tiny_prompt(server, object_info):
    """Return a function from a workflow file to a prompt that runs it small, on the tiny SVD.

    is_counted: whether the demo's counter and its frames are in it.
    """

    def make(
        workflow: Path, frames: int = 4, steps: int = 5, seed: int = 0, is_counted: bool = True
    ) -> dict:
        prompt = prompts.to_prompt(prompts.load(workflow), object_info)
        prompts.replace_loader(prompt, "VCUT_LoadTinySVD")
        prompts.set_inputs(prompt, "LoadImage", image=server.upload(EXAMPLE_IMAGE))
        conditioning = {"width": 96, "height": 96, "video_frames": frames}
        prompts.set_inputs(prompt, "SVD_img2vid_Conditioning", **conditioning)
        prompts.set_inputs(prompt, "VCUT_ContinueVideo", video_frames=frames, overlap=2)
        prompts.set_inputs(prompt, "VCUT_JoinVideos", overlap=2)
        prompts.set_inputs(prompt, "KSampler", steps=steps, seed=seed)
        for schedule in ("AlignYourStepsScheduler", "KarrasScheduler"):
            prompts.set_inputs(prompt, schedule, steps=steps)
        prompts.set_inputs(prompt, "SamplerCustom", noise_seed=seed)
        if is_counted:
            prompts.add_counter(prompt)
            prompts.add_frames_output(prompt)
        return prompt

    return make
