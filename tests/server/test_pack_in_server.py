"""The pack in a real headless server: how it loads, what it offers, that its graphs run."""

import json
import re

import pytest
import requests
from private_comfyui import prompts
from private_comfyui.environments import PACK, HostError
from private_comfyui.install import WORKFLOWS
from private_comfyui.serve import ComfyServer

NODES = {
    "VCUT_PatchSVDModel": {
        "model": None,
        "temporal": ("cached", ["cached", "remove", "keep"]),
        "spatial": ("cached", ["cached", "keep"]),
    },
    "VCUT_LoadSVDCheckpoint": {
        "ckpt_name": None,
        "temporal": ("cached", ["cached", "remove"]),
    },
    "VCUT_GuidanceScheduler": {
        "model": None,
        "cut_step": (17, (1, 10000)),
        "steps": (25, (1, 10000)),
        "after_cut": ("average", ["average", "positive", "none"]),
        "cut_sigma": (0.0, (0.0, 10000.0)),
        "start_step": (1, (1, 10000)),
    },
    "VCUT_FeatureSlicer": {
        "model": None,
        "slices": (0, (0, 64)),
        "scope": ("blocks", ["blocks", "feed_forward", "everything"]),
    },
    "VCUT_CompareVideos": {
        "video_a": None,
        "video_b": None,
        "label_a": ("without VCUT", None),
        "label_b": ("with VCUT", None),
        "difference_gain": (4.0, (1.0, 255.0)),
    },
    "VCUT_CostReport": {
        "model": None,
        "width": (1024, (16, 16384)),
        "height": (576, (16, 16384)),
        "video_frames": (25, (1, 4096)),
        "steps": (25, (1, 10000)),
        "samples": None,
    },
    "VCUT_StepCache": {
        "model": None,
        "pace": ("balanced", ["balanced", "careful", "fast"]),
    },
    "VCUT_DecodeVideo": {
        "samples": None,
        "vae": None,
        "slices": (0, (0, 64)),
    },
    "VCUT_ContinueVideo": {
        "clip_vision": None,
        "vae": None,
        "samples": None,
        "video_frames": (14, (2, 4096)),
        "overlap": (4, (1, 4095)),
        "motion_bucket_id": (127, (1, 1023)),
        "fps": (6, (1, 1024)),
        "augmentation_level": (0.0, (0.0, 10.0)),
        "negative_picture": ("zero", ["zero", "keep"]),
    },
    "VCUT_JoinVideos": {
        "samples": None,
        "continuation": None,
        "overlap": (4, (1, 4095)),
    },
    "VCUT_RunReport": {"samples": None},
}
OUTPUTS = {
    "VCUT_RunReport": ["STRING"],
    "VCUT_DecodeVideo": ["IMAGE"],
    "VCUT_ContinueVideo": ["CONDITIONING", "CONDITIONING", "LATENT"],
    "VCUT_JoinVideos": ["LATENT"],
    "VCUT_LoadSVDCheckpoint": ["MODEL", "CLIP_VISION", "VAE"],
    "VCUT_CompareVideos": ["IMAGE", "IMAGE", "IMAGE", "STRING"],
    "VCUT_CostReport": ["STRING", "IMAGE"],
}
FILES = sorted(WORKFLOWS.glob("*.json"))


def _choices(spec: list) -> tuple:
    """Return (default, allowed values or range, None for a text) of one input of /object_info."""
    kind, options = spec
    if kind == "STRING":
        return options["default"], None
    if isinstance(kind, list) or kind == "COMBO":
        return options["default"], options.get("options", kind)
    return options["default"], (options["min"], options["max"])


def _frames(server: ComfyServer, run) -> list[bytes]:
    names = [{k: f[k] for k in ("filename", "subfolder", "type")} for f in run.files["frames"]]
    return [requests.get(server.url + "/view", params=n, timeout=30).content for n in names]


@pytest.mark.parametrize("node_id", NODES)
def test_node_has_the_inputs_that_shared_workflows_rely_on(object_info, node_id):
    info = object_info[node_id]
    inputs = info["input"]["required"] | info["input"].get("optional", {})
    assert list(inputs) == list(NODES[node_id])
    expected = {name: value for name, value in NODES[node_id].items() if value is not None}
    assert {name: _choices(inputs[name]) for name in expected} == expected
    assert info["output"] == OUTPUTS.get(node_id, ["MODEL"])
    assert info["category"] == "VCUT"
    assert all(spec[1]["tooltip"] for spec in inputs.values())


def test_page_gets_every_translation(server):
    told = server.get("/i18n")
    for file in PACK.glob("locales/*/nodeDefs.json"):
        nodes = json.loads(file.read_text(encoding="utf-8"))
        assert told[file.parent.name]["nodeDefs"].items() >= nodes.items()
        help_page = f"docs/VCUT_StepCache/{file.parent.name}.md"
        answer = requests.get(f"{server.url}/extensions/VCUT/{help_page}", timeout=30)
        assert answer.content == (PACK / "nodes" / "web" / help_page).read_bytes()


def test_pack_loads_without_a_traceback(server, object_info):
    log = server.log_text().partition("got prompt")[0]  # other tests' runs follow
    assert re.search(r"seconds: .*custom_nodes.VCUT\n", log)
    # torchaudio, which no SVD graph needs, has no build beside this torch; ComfyUI says so.
    causes = re.findall(r"^(\w+(?:Error|Exception)\b.*)$", log, re.MULTILINE)
    assert set(causes) <= {"ModuleNotFoundError: No module named 'torchaudio'"}
    assert "IMPORT FAILED" not in log.split("custom_nodes/VCUT")[0].split("Import times")[-1]


@pytest.mark.parametrize("node_id", NODES)
def test_help_page_is_served(server, node_id):
    page = requests.get(f"{server.url}/extensions/VCUT/docs/{node_id}.md", timeout=10)
    assert page.status_code == 200
    for name in NODES[node_id]:
        assert f"`{name}`" in page.text


def test_every_workflow_has_a_thumbnail_and_is_offered_as_a_template(server):
    assert FILES
    offered = server.get("/workflow_templates")["VCUT"]
    assert sorted(offered) == [file.stem for file in FILES]
    assert all(file.with_suffix(".jpg").exists() for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflow_uses_only_nodes_and_inputs_that_exist(object_info, file):
    prompt = prompts.to_prompt(prompts.load(file), object_info)
    for node in prompt.values():
        declared = object_info[node["class_type"]]["input"]
        names = {*declared["required"], *declared.get("optional", {})}
        # An input that a choice brings is named after it: format.codec.
        assert {name.partition(".")[0] for name in node["inputs"]} <= names
        assert set(declared["required"]) <= set(node["inputs"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflow_runs_to_a_video_file(server, tiny_prompt, file):
    prompt = tiny_prompt(file)
    parts = prompts.nodes_of(prompt, "VCUT_ContinueVideo")
    run = server.run(prompt)
    assert len(run.files["frames"]) == 4 + 2 * len(parts)
    (video,) = [f for files in run.files.values() for f in files if f["filename"].endswith(".mp4")]
    names = {name: video[name] for name in ("filename", "subfolder", "type")}
    video = requests.get(server.url + "/view", params=names, timeout=30).content
    assert video[4:8] == b"ftyp"


def test_evaluations_counted_apart_equal_the_reported_ones(server, tiny_prompt):
    # 5 steps, cut 17 of 25: round(16 * 5 / 25) = 3 guided steps, so 2 * 3 + 2 = 8 of 10.
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=1)
    log_before = server.log_text()
    run = server.run(prompt)
    assert [event["evaluations"] for event in run.events["vcut_demo.run"]] == [8]
    (scheduler,) = prompts.nodes_of(prompt, "VCUT_GuidanceScheduler")
    (patch,) = prompts.nodes_of(prompt, "VCUT_PatchSVDModel")
    lines = ["8 of 10 UNet evaluations", "guided 3 of 5 steps"]
    assert run.texts[scheduler].splitlines()[:-1] == lines
    # 32 layers for cond with uncond, and for cond alone; reused in the other three steps.
    lines = ["cross-attention: 64 computed, 96", "from cache"]
    assert run.texts[patch].splitlines()[:-1] == lines
    assert server.log_text()[len(log_before) :].count("VCUT: ") == 1
    (told,) = run.events["vcut.run"]
    assert {node_id: " ".join(lines) for node_id, lines in told["lines"].items()} == {
        node_id: " ".join(run.texts[node_id].splitlines()) for node_id in (scheduler, patch)
    }
    assert told["counts"]["unet_evaluations"] == 8 and told["counts"]["evaluations_saved"] == 2


@pytest.mark.parametrize(
    ("name", "steps", "evaluations", "line"),
    [
        # No guidance: 32 layers computed once, reused in the other 3 steps.
        ("svd_xt_few_steps", 4, 4, "32 computed, 96 from cache"),
        # Cut at 17 of 25: round(16 * 10 / 25) = 6 guided, so 6 * 2 + 4. The 32 layers are computed
        # for cond with uncond, and for cond alone; reused in the other 8 steps.
        ("svd_xt_align_your_steps", 10, 16, "64 computed, 256 from cache"),
    ],
)
def test_workflow_with_its_own_schedule_saves_what_its_note_says(
    server, tiny_prompt, name, steps, evaluations, line
):
    prompt = tiny_prompt(WORKFLOWS / f"{name}.json", steps=steps)
    run = server.run(prompt)
    assert [event["evaluations"] for event in run.events["vcut_demo.run"]] == [evaluations]
    (told,) = run.events["vcut.run"]
    assert f"cross-attention: {line}" in told["log_line"]


def test_no_trace_stays_when_the_nodes_are_taken_out_of_the_graph(server, tiny_prompt):
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=2)
    stock = prompts.without_vcut(prompt)
    before, with_vcut, after = (server.run(p) for p in (stock, prompt, stock))
    assert after.events["vcut_demo.run"], "the server reused the first result"
    assert _frames(server, with_vcut) != _frames(server, before)
    assert _frames(server, after) == _frames(server, before)


def test_second_run_equals_the_first_when_another_picture_ran_between(server, tiny_prompt):
    first = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=3)
    other = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=4, frames=6)
    prompts.set_inputs(other, "SVD_img2vid_Conditioning", width=128, motion_bucket_id=20)
    runs = [server.run(prompt) for prompt in (first, other, first)]
    assert all(run.events["vcut_demo.run"] for run in runs)
    assert len(runs[1].files["frames"]) == 6
    assert _frames(server, runs[2]) == _frames(server, runs[0])


def test_next_run_is_clean_when_one_was_interrupted(server, tiny_prompt):
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=5)
    expected = _frames(server, server.run(prompt))
    long = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=6, steps=500)

    interrupted = []

    def interrupt(done: int, total: int) -> None:
        if done >= 2 and not interrupted:  # newer hosts leave out steps that come too fast
            interrupted.append(done)
            server.interrupt()

    with pytest.raises(HostError, match="interrupted"):
        server.run(long, on_progress=interrupt)
    assert re.search(r"VCUT: stopped early; .*; guided 320 of 500 steps", server.log_text())
    assert _frames(server, server.run(prompt)) == expected


def test_comparison_is_told_in_words_and_a_label_is_no_html_for_the_page(server):
    # 0x808080 is 128 of 255 and 0x878787 is 135: 7 levels, 20 log10(255 / 7) = 31.2 dB.
    grey, lighter = 0x808080, 0x878787
    size = {"width": 32, "height": 32}
    inputs = {
        "video_a": ["1", 0],
        "video_b": ["2", 0],
        "label_a": "<b>a & b</b>",
        "label_b": "",
        "difference_gain": 4.0,
    }
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": size | {"batch_size": 5, "color": grey}},
        "2": {"class_type": "EmptyImage", "inputs": size | {"batch_size": 3, "color": lighter}},
        "3": {"class_type": "VCUT_CompareVideos", "inputs": inputs},
    }
    lines = server.run(prompt).texts["3"].splitlines()
    assert lines[0].startswith("3 frames of 32x32: PSNR 31.2 dB, SSIM ")
    assert lines[1].startswith("Largest error in frame 1: 7.00 of 255 on average")
    # A host without matplotlib has a line more.
    label = "&lt;b&gt;a &amp; b&lt;/b&gt; has 5 frames, video_b 3: "
    assert [line for line in lines[2:] if line.startswith(label)]


def test_cost_report_runs_on_its_own_and_promises_what_the_run_then_says(server, tiny_prompt):
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=9)
    (sampler,) = prompts.nodes_of(prompt, "KSampler")
    (conditioning,) = prompts.nodes_of(prompt, "SVD_img2vid_Conditioning")
    size = ("width", "height", "video_frames")
    inputs = {name: prompt[conditioning]["inputs"][name] for name in size}
    # Before the demo's own counter, a wrapper that the report would not vouch for.
    (counter,) = prompts.nodes_of(prompt, "VCUT_CountEvaluations")
    inputs["model"] = prompt[counter]["inputs"]["model"]
    inputs["steps"] = prompt[sampler]["inputs"]["steps"]
    prompt["report"] = {"class_type": "VCUT_CostReport", "inputs": inputs}
    lines = server.run(prompt).texts
    (promise,) = (line for line in lines["report"].splitlines() if "after the run: " in line)
    nodes = prompts.nodes_of(prompt, "VCUT_GuidanceScheduler", "VCUT_PatchSVDModel")
    promised = promise.partition("after the run: ")[2].replace("; ", " ")
    shown = [" ".join(lines[node_id].splitlines()[:-1]) for node_id in nodes]
    assert promised in (" ".join(shown), " ".join(reversed(shown)))


def test_run_report_comes_after_sampling_and_into_the_history(server, tiny_prompt):
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json", seed=10)
    (sampler,) = prompts.nodes_of(prompt, "KSampler")
    report = {"class_type": "VCUT_RunReport", "inputs": {"samples": [sampler, 0]}}
    texts = []
    for name in ("report", "added later"):  # then ComfyUI has the sampler's result in its cache
        prompt[name] = report
        log_before = server.log_text()
        run = server.run(prompt)
        texts.append(" ".join(run.texts[name].splitlines()))
        assert server.log_text()[len(log_before) :].count("VCUT: ") == (name == "report")
    (line,) = re.findall("VCUT: (.*)", server.log_text().rpartition("got prompt")[0])[-1:]
    assert texts == [line.replace("; ", " ")] * 2
    outputs = [h["outputs"] for h in server.get("/history").values()][-1]
    assert outputs["report"]["text"] == outputs["added later"]["text"] == [line.replace("; ", "\n")]
    stock = server.run(prompts.without_vcut(prompt))
    assert stock.texts["report"].startswith("No run with VCUT made these")


def test_refused_prompt_names_the_node_and_the_input(server, tiny_prompt):
    prompt = tiny_prompt(WORKFLOWS / "svd_vcut.json")
    prompts.set_inputs(prompt, "VCUT_GuidanceScheduler", cut_step=0)
    with pytest.raises(HostError, match="VCUT_GuidanceScheduler.*cut_step"):
        server.run(prompt)
