"""What the demo makes of a run in a real headless server: its two videos and their counts."""

import re

import pytest
import run as demo
from private_comfyui import prompts
from private_comfyui.install import WORKFLOWS


@pytest.fixture
def prompt(tiny_prompt) -> dict:
    return tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=21)


def test_video_with_vcut_has_the_counts_that_the_pack_sends(server, prompt, tmp_path):
    video = demo._make_video(server, prompt, "with VCUT", tmp_path)
    # 32 affine maps, evaluated for cond with uncond and for the averaged cond: 64 at any length.
    assert (video.evaluations, video.cross_attentions) == (8, 64)
    (line,) = video.lines
    assert line.startswith("8 of 10 UNet evaluations; guided 3 of 5 steps; ")
    assert "cut at step 4 " in line


def test_video_without_vcut_has_no_cached_cross_attentions(server, prompt, tmp_path):
    video = demo._make_video(server, prompts.without_vcut(prompt), "without VCUT", tmp_path)
    assert (video.evaluations, video.cross_attentions, video.lines) == (10, 0, [])


def test_video_longer_than_its_model_is_made_in_both_ways(server, tiny_prompt, tmp_path):
    made, prompt = {}, tiny_prompt(WORKFLOWS / "svd_vcut.json", frames=6, is_counted=False)
    for title, variant in demo._variants(prompt, frames=8).items():
        made[title] = demo._make_video(server, variant, title, tmp_path)
    chain, continued = made["last frame chain"], made["VCUT Continue Video"]
    assert len(chain.frames) == len(continued.frames) == 8
    # One part more in both: 10 and 10 evaluations; 8, then 5 without guidance.
    assert (chain.evaluations, continued.evaluations) == (20, 13)


def test_progress_of_a_video_is_two_lines_in_a_log(server, prompt, tmp_path, capsys):
    prompts.set_inputs(prompt, "KSampler", seed=22)
    demo._make_video(server, prompt, "with VCUT", tmp_path)
    told = capsys.readouterr().err
    assert re.fullmatch(r"with VCUT: 5 steps\nwith VCUT: done in \d+\.\d s\n", told), told
