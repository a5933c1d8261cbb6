"""Prompts made longer: VCUT's way, and the chain of last frames."""

import copy

import pytest
from private_comfyui import long_prompts, prompts
from private_comfyui.install import WORKFLOWS

PROMPT = {
    "l": {"class_type": "VCUT_LoadTinySVD", "inputs": {}},
    "i": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "c": {
        "class_type": "SVD_img2vid_Conditioning",
        "inputs": {
            "clip_vision": ["l", 1], "vae": ["l", 2], "init_image": ["i", 0], "width": 64,
            "height": 64, "video_frames": 14, "motion_bucket_id": 90, "fps": 7,
            "augmentation_level": 0.1,
        },
    },
    "s": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["l", 0], "seed": 5, "steps": 25, "cfg": 2.5, "positive": ["c", 0],
            "negative": ["c", 1], "latent_image": ["c", 2],
        },
    },
    "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["l", 2]}},
    "v": {"class_type": "CreateVideo", "inputs": {"images": ["d", 0], "fps": 6}},
}  # fmt: skip


def _inputs(prompt: dict, class_type: str) -> list[dict]:
    return [prompt[node]["inputs"] for node in prompts.nodes_of(prompt, class_type)]


@pytest.mark.parametrize(("frames", "parts"), [(15, 1), (24, 1), (25, 2), (34, 2), (54, 4)])
def test_video_is_continued_until_it_has_its_frames(frames, parts):
    prompt = long_prompts.continued(PROMPT, frames)
    joins = _inputs(prompt, "VCUT_JoinVideos")
    assert len(_inputs(prompt, "VCUT_ContinueVideo")) == len(joins) == parts
    samplers = _inputs(prompt, "KSampler")
    assert [s["cfg"] for s in samplers] == [2.5] + [1.0] * parts
    assert [s["seed"] for s in samplers] == list(range(5, 6 + parts))
    (cut,) = _inputs(prompt, "LatentFromBatch")
    assert cut == {"samples": [f"join_{parts}", 0], "batch_index": 0, "length": frames}
    assert _inputs(prompt, "VAEDecode")[0]["samples"] == ["cut", 0]


def test_parts_have_the_motion_of_the_first_video_and_the_overlap_of_their_join():
    prompt = long_prompts.continued(PROMPT, 34)
    for part, join in zip(
        _inputs(prompt, "VCUT_ContinueVideo"), _inputs(prompt, "VCUT_JoinVideos"), strict=True
    ):
        kept = {"motion_bucket_id": 90, "fps": 7, "augmentation_level": 0.1, "video_frames": 14}
        assert part.items() >= kept.items()
        assert part["overlap"] == join["overlap"] and part["samples"] == join["samples"]


@pytest.mark.parametrize(("frames", "parts"), [(15, 1), (27, 1), (28, 2), (54, 4)])
def test_chain_goes_on_from_the_picture_of_the_last_frame(frames, parts):
    prompt = long_prompts.last_frame_chain(PROMPT, frames)
    pictures = [i["init_image"] for i in _inputs(prompt, "SVD_img2vid_Conditioning")]
    assert pictures == [["i", 0], *([f"picture_{k + 1}", 0] for k in range(parts))]
    assert prompt["picture_1"]["inputs"] == {"image": ["d", 0], "batch_index": 13, "length": 1}
    assert prompt["rest_1"]["inputs"] == {"image": ["decode_1", 0], "batch_index": 1, "length": 13}
    whole = prompt[long_prompts.FRAMES]["inputs"]
    assert whole == {"image": [f"joined_{parts}", 0], "batch_index": 0, "length": frames}
    assert prompt["v"]["inputs"]["images"] == [long_prompts.FRAMES, 0]


@pytest.mark.parametrize("make", [long_prompts.continued, long_prompts.last_frame_chain])
def test_prompt_that_was_given_stays_as_it_is(make):
    given = copy.deepcopy(PROMPT)
    make(given, 34)
    assert given == PROMPT


@pytest.mark.parametrize("make", [long_prompts.continued, long_prompts.last_frame_chain])
def test_workflow_with_two_samplers_is_refused_in_one_sentence(make):
    prompt = PROMPT | {"t": PROMPT["s"]}
    with pytest.raises(prompts.WorkflowError, match="one KSampler to make longer, found 2"):
        make(prompt, 34)


def test_continuations_are_taken_out_and_counted():
    prompt, parts = long_prompts.first_part(long_prompts.continued(PROMPT, 34))
    assert parts == 2
    assert prompts.nodes_of(prompt, "VCUT_ContinueVideo", "VCUT_JoinVideos") == []
    assert prompts.nodes_of(prompt, "KSampler") == ["s"]
    assert prompt["cut"]["inputs"]["samples"] == ["s", 0]


def test_workflow_without_continuations_is_its_own_first_part():
    assert long_prompts.first_part(PROMPT) == (PROMPT, 0)
    assert long_prompts.video_frames(PROMPT) == 14


def test_frames_that_come_from_a_link_are_not_known():
    prompt = copy.deepcopy(PROMPT)
    prompt["c"]["inputs"]["video_frames"] = ["x", 0]
    assert long_prompts.video_frames(prompt) is None


def test_long_workflow_has_the_overlap_that_the_demo_uses():
    nodes = prompts.load(WORKFLOWS / "svd_xt_long.json")["nodes"]
    joins = [node["widgets_values"] for node in nodes if node["type"] == "VCUT_JoinVideos"]
    assert joins == [[long_prompts.OVERLAP]] * 2
