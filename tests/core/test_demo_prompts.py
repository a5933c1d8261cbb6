"""Workflow files become prompts, and prompts are edited, as the page would do it."""

import json

import pytest
from private_comfyui import prompts
from private_comfyui.install import WORKFLOWS

OBJECT_INFO = {
    "Loader": {"input": {"required": {"name": [["a", "b"], {}]}}, "display_name": "Loader"},
    "Patch": {
        "input": {"required": {"model": ["MODEL", {}], "strength": ["FLOAT", {}]}},
        "display_name": "Patch",
    },
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
            },
            "optional": {"label": ["STRING", {"forceInput": True}]},
        },
        "display_name": "Sampler",
    },
}


def _node(node_id: int, kind: str, values: list, model_link: int | None = None, mode: int = 0):
    inputs = [] if kind == "Loader" else [{"name": "model", "type": "MODEL", "link": model_link}]
    outputs = [{"name": "MODEL", "type": "MODEL"}]
    return {
        "id": node_id, "type": kind, "mode": mode, "widgets_values": values,
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip


def _workflow(mode: int = 0, middle: str = "Patch") -> dict:
    """Return Loader -> Patch -> Sampler, the middle node in ``mode``."""
    nodes = [
        _node(1, "Loader", ["a"]),
        _node(2, middle, [0.5], model_link=1, mode=mode),
        _node(3, "Sampler", [7, "fixed", 20], model_link=2),
        {"id": 4, "type": "Note", "mode": 0, "widgets_values": ["read me"]},
    ]
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]]
    return {"nodes": nodes, "links": links}


def test_widgets_links_and_seed_control_find_their_inputs():
    prompt = prompts.to_prompt(_workflow(), OBJECT_INFO)
    assert {key: node["inputs"] for key, node in prompt.items()} == {
        "1": {"name": "a"},
        "2": {"model": ["1", 0], "strength": 0.5},
        "3": {"model": ["2", 0], "seed": 7, "steps": 20},
    }


def _combo(**inputs_of_each_choice):
    options = [{"key": key, "inputs": inputs} for key, inputs in inputs_of_each_choice.items()]
    return ["COMFY_DYNAMICCOMBO_V3", {"options": options}]


SAVER = {  # as SaveVideo of newer hosts: what is chosen brings widgets of its own
    "input": {
        "required": {
            "prefix": ["STRING", {}],
            "format": _combo(
                auto={"required": {"codec": _combo(auto={})}},
                mkv={"required": {"codec": _combo(av1={"optional": {"crf": ["FLOAT", {}]}})}},
            ),
        },
        "optional": {"note": ["STRING", {}]},
    },
    "display_name": "Saver",
}


@pytest.mark.parametrize(
    "values, expected",
    [
        (
            ["video", "auto", "auto"],
            {"format": "auto", "format.codec": "auto", "note": ""},
        ),
        (
            ["video", "mkv", "av1", 30.0, "good"],
            {"format": "mkv", "format.codec": "av1", "format.codec.crf": 30.0, "note": "good"},
        ),
        (["video", "gone", "good"], {"format": "gone", "note": "good"}),
        (
            ["video"],
            {
                "format": "auto",
                "format.codec": "auto",
                "note": "",
            },
        ),
    ],
)
def test_widgets_of_a_choice_are_named_after_it(values, expected):
    workflow = {"nodes": [_node(1, "Saver", values)], "links": []}
    prompt = prompts.to_prompt(workflow, OBJECT_INFO | {"Saver": SAVER})
    assert prompt["1"]["inputs"] == {"prefix": "video", **expected}


@pytest.mark.parametrize(
    "spec, expected",
    [
        (["INT", {"default": 7}], 7),
        (["INT", {}], 0),
        (["BOOLEAN", {}], False),
        (["STRING"], ""),
        ([["b", "a"], {}], "b"),
        (["COMBO", {"options": ["c", "d"], "default": "d"}], "d"),
        (["COMBO", {"options": ["c", "d"]}], "c"),
    ],
)
def test_widget_that_the_workflow_is_too_old_to_know_takes_its_default(spec, expected):
    info = {"Old": {"input": {"required": {"new": spec}}, "display_name": "Old"}}
    prompt = prompts.to_prompt({"nodes": [_node(1, "Old", [])], "links": []}, info)
    assert prompt["1"]["inputs"] == {"new": expected}


def test_bypassed_node_passes_its_model_on():
    prompt = prompts.to_prompt(_workflow(prompts.BYPASSED), OBJECT_INFO)
    assert prompt["3"]["inputs"]["model"] == ["1", 0]
    assert "2" not in prompt


def test_muted_node_cuts_the_link_behind_it():
    prompt = prompts.to_prompt(_workflow(prompts.MUTED), OBJECT_INFO)
    assert "model" not in prompt["3"]["inputs"]


def test_reroute_is_followed_to_its_source():
    prompt = prompts.to_prompt(_workflow(middle="Reroute"), OBJECT_INFO)
    assert prompt["3"]["inputs"]["model"] == ["1", 0]


def test_missing_node_type_is_named():
    with pytest.raises(prompts.WorkflowError, match="no node Unheard"):
        prompts.to_prompt(_workflow(middle="Unheard"), OBJECT_INFO)


def test_subgraphs_are_refused_in_one_sentence():
    with pytest.raises(prompts.WorkflowError, match="without subgraphs"):
        prompts.to_prompt({**_workflow(), "definitions": {"subgraphs": [{}]}}, OBJECT_INFO)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"nodes": [1], "links": []}', "\x00"])
def test_file_that_is_no_workflow_is_refused(tmp_path, text):
    file = tmp_path / "workflow.json"
    file.write_text(text)
    with pytest.raises(prompts.WorkflowError, match="expected a workflow"):
        prompts.load(file)


def _vcut_prompt() -> dict:
    return {
        "1": {"class_type": "VCUT_LoadSVDCheckpoint",
              "inputs": {"ckpt_name": "svd.safetensors", "temporal": "remove"}},
        "2": {"class_type": "VCUT_GuidanceScheduler", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "latent_image": ["9", 2]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
    }  # fmt: skip


def test_without_vcut_is_the_stock_graph():
    prompt = _vcut_prompt()
    stock = prompts.without_vcut(prompt)
    assert stock["1"] == {
        "class_type": "ImageOnlyCheckpointLoader",
        "inputs": {"ckpt_name": "svd.safetensors"},
    }
    assert stock["3"]["inputs"]["model"] == ["1", 0]
    assert stock["4"]["inputs"]["vae"] == ["1", 2]
    assert prompt == _vcut_prompt()  # the caller's prompt stays


def test_without_vcut_a_video_is_decoded_by_the_stock_node():
    prompt = _vcut_prompt()
    prompt["4"] = {
        "class_type": "VCUT_DecodeVideo",
        "inputs": {"samples": ["3", 0], "vae": ["1", 2], "slices": 0},
    }
    assert prompts.without_vcut(prompt)["4"] == _vcut_prompt()["4"]
    assert prompts.add_frames_output(prompt) == "frames"
    assert prompt["frames"]["inputs"]["images"] == ["4", 0]


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*vcut*.json")), ids=lambda file: file.stem)
def test_without_vcut_nothing_of_vcut_stays_in_a_shipped_workflow(file):
    prompt = {}
    workflow = json.loads(file.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:  # the model line, wherever a node stands in it
        inputs = {"ckpt_name": "svd.safetensors"}
        inputs |= {socket["name"]: ["source", 0] for socket in node.get("inputs", [])}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    kinds = {node["class_type"] for node in prompts.without_vcut(prompt).values()}
    assert not [kind for kind in kinds if kind.startswith("VCUT_")]


def test_pruned_loader_becomes_a_loader_and_the_patch_node():
    prompt = _vcut_prompt()
    prompts.replace_loader(prompt, "VCUT_LoadTinySVD")
    assert prompt["1"] == {"class_type": "VCUT_LoadTinySVD", "inputs": {}}
    patch = prompt[prompt["2"]["inputs"]["model"][0]]
    assert patch["class_type"] == "VCUT_PatchSVDModel"
    modes = {"temporal": "remove", "spatial": "cached"}
    assert patch["inputs"] == {"model": ["1", 0], **modes}
    assert prompt["4"]["inputs"]["vae"] == ["1", 2]


def _comparing_prompt() -> dict:
    """Return a sampler without VCUT ("s") and one with it ("3"), compared and shown."""
    prompt = _vcut_prompt()
    prompt["l"] = {"class_type": prompts.STOCK_LOADER, "inputs": {"ckpt_name": "svd.safetensors"}}
    prompt["s"] = {"class_type": "KSampler", "inputs": {"model": ["l", 0], "seed": 7}}
    prompt["d"] = {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["l", 2]}}
    videos = {"video_a": ["d", 0], "video_b": ["4", 0]}
    prompt["c"] = {"class_type": "VCUT_CompareVideos", "inputs": {**videos, "label_a": "without"}}
    prompt["p"] = {"class_type": "PreviewImage", "inputs": {"images": ["c", 1]}}
    return prompt


@pytest.mark.parametrize("is_swapped", [False, True])
def test_of_a_comparison_the_video_with_vcut_stays(is_swapped):
    prompt = _comparing_prompt()
    if is_swapped:
        prompt["c"]["inputs"].update(video_a=["4", 0], video_b=["d", 0])
    assert prompts.without_comparison(prompt) == _vcut_prompt()


def test_prompt_without_a_comparison_stays_as_it_is():
    assert prompts.without_comparison(_vcut_prompt()) == _vcut_prompt()


def test_comparison_without_videos_is_refused():
    prompt = _comparing_prompt()
    prompt["c"]["inputs"].update(video_a="none", video_b=[3, 0])
    with pytest.raises(prompts.WorkflowError, match="VCUT_CompareVideos with its video_b"):
        prompts.without_comparison(prompt)


def test_counter_stands_right_before_the_sampler():
    prompt = _vcut_prompt()
    prompts.add_counter(prompt)
    counter = prompt[prompt["3"]["inputs"]["model"][0]]
    assert counter == {"class_type": "VCUT_CountEvaluations", "inputs": {"model": ["2", 0]}}


def test_steps_are_those_of_the_sampler_and_not_of_a_vcut_node():
    prompt = _vcut_prompt()
    prompt["2"]["inputs"]["steps"] = 25
    assert prompts.num_steps(prompt) is None
    prompt["3"]["inputs"]["steps"] = ["9", 0]  # of another node, unknown before the run
    assert prompts.num_steps(prompt) is None
    prompt["3"]["inputs"]["steps"] = 20
    assert prompts.num_steps(prompt) == 20


def test_steps_are_those_of_the_scheduler_when_the_sampler_takes_sigmas():
    prompt = _vcut_prompt()
    prompt["8"] = {"class_type": "BasicScheduler", "inputs": {"model": ["2", 0], "steps": 12}}
    assert prompts.num_steps(prompt) == 12


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_workflow_has_six_tuple_links_and_provenance(file):
    workflow = json.loads(file.read_text(encoding="cp1252"))
    assert workflow["version"] == 0.4
    assert all(len(link) == 6 for link in workflow["links"])
    for node in workflow["nodes"]:
        if node["type"] not in prompts.VIRTUAL:
            owner = "vcut-svd" if node["type"].startswith("VCUT_") else "comfy-core"
            assert node["properties"]["cnr_id"] == owner
            assert node["properties"]["ver"]
