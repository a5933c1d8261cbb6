"""The workflows to drag in, in ComfyUI's real page."""

import json
import re
import uuid

import pytest
import requests
from comfy_page import (
    complaints,
    load_workflow,
    open_again,
    placeholder_checkpoints,
    prompt_of,
    refresh_lists,
    serialized,
    show_node,
    whole_graph,
)
from make_workflows import COMFYUI_VERSION, RECIPES, build, finish, pack_version
from private_comfyui.install import WORKFLOWS, comfyui_version, current_host
from private_comfyui.prompts import to_prompt
from vcut.tests.support.page_scripts import USE_TINY_MODEL

pytestmark = pytest.mark.browser

FILES = {file.stem: file for file in sorted(WORKFLOWS.glob("*.json"))}
NAMES = list(FILES)
VCUT_NODES = ("VCUT_PatchSVDModel", "VCUT_GuidanceScheduler")
SCHEDULE = [17, 25, "average", 0, 1]
LOADER = {"VCUT_LoadSVDCheckpoint": ["svd_xt.safetensors", "cached"]}
GUIDANCE = {"VCUT_GuidanceScheduler": SCHEDULE}
PATCH = {"VCUT_PatchSVDModel": ["cached", "cached"]}
VCUT_VALUES = {
    "svd_vcut": PATCH | GUIDANCE,
    "svd_xt_vcut_exact": LOADER | {"VCUT_FeatureSlicer": [0, "feed_forward"]},
    "svd_xt_vcut_paper": {"VCUT_PatchSVDModel": ["remove", "cached"]} | GUIDANCE,
    "svd_xt_vcut_fast": LOADER | GUIDANCE | {"VCUT_StepCache": ["balanced"]},
    "svd_xt_vcut_8gb": LOADER | GUIDANCE | {"VCUT_FeatureSlicer": [0, "everything"]},
    "svd_xt_align_your_steps": LOADER | GUIDANCE,
    "svd_xt_few_steps": PATCH | {"VCUT_FeatureSlicer": [0, "feed_forward"]},
    "svd_xt_long": LOADER
    | GUIDANCE
    | {
        "VCUT_StepCache": ["balanced"],
        "VCUT_FeatureSlicer": [0, "everything"],
        "VCUT_ContinueVideo": [25, 4, 127, 6, 0, "zero"],
        "VCUT_JoinVideos": [4],
    },
    "svd_compare": PATCH | GUIDANCE | {"VCUT_CompareVideos": ["without VCUT", "with VCUT", 4]},
}

for values in VCUT_VALUES.values():
    values["VCUT_DecodeVideo"] = [0]

# Texts that their node is too small for; a note's hidden field for editing is no such text.
CUT_OFF_TEXTS = """() => [...document.querySelectorAll('.dom-widget')]
    .filter(widget => [widget, ...widget.querySelectorAll('*')].some(part =>
        part.tagName !== 'TEXTAREA' && part.clientHeight > 0
        && getComputedStyle(part).overflowY !== 'visible'
        && part.scrollHeight > part.clientHeight + 1))
    .map(widget => widget.innerText)"""

# More rows on the page than lines in the text.
IS_BROKEN_ANYWHERE = """widget => {
    const text = document.createTreeWalker(widget, NodeFilter.SHOW_TEXT).nextNode()
    const range = document.createRange()
    range.selectNodeContents(text.parentElement)
    const boxes = [...range.getClientRects()].filter(box => box.width)
    const tops = new Set(boxes.map(box => Math.round(box.top)))
    return tops.size > widget.innerText.trim().split('\\n').length
}"""

PREVIEWS_ARE_THERE = """() => window.app.graph.nodes.filter(node => node.type === 'PreviewImage')
    .every(node => node.imgs?.length && node.imgs.every(image => image.complete))"""
SUMMARY = """() => window.app.graph.nodes.find(node => node.type === 'PreviewAny')
    .widgets.map(widget => widget.value).find(value => value)"""

HOST_VERSION = ".".join(map(str, comfyui_version(current_host().comfyui)))
on_the_host_of_the_files = pytest.mark.skipif(
    HOST_VERSION != COMFYUI_VERSION,
    reason=f"the files are as the page of ComfyUI {COMFYUI_VERSION} saves them, not {HOST_VERSION}",
)


def read(name: str) -> dict:
    """Return the workflow ``name``."""
    return json.loads(FILES[name].read_text(encoding="utf-8"))


@pytest.fixture
def checkpoints(comfyui, open_page):
    """Both SVD checkpoints by name: no workflow is run on them, and their weights are not here."""
    with placeholder_checkpoints(comfyui):
        refresh_lists(open_page)
        yield
    refresh_lists(open_page)


def test_every_recipe_has_its_workflow_file_and_no_other_is_there():
    assert set(NAMES) == set(RECIPES) == set(VCUT_VALUES)


@pytest.mark.parametrize("name", NAMES)
def test_workflow_loads_without_dialog_or_error(page, checkpoints, artefacts, name):
    load_workflow(page, read(name))
    with whole_graph(page, artefacts / f"workflow_{name}.png"):
        assert page.evaluate(CUT_OFF_TEXTS) == []

    assert complaints(page).all_inner_texts() == []


@on_the_host_of_the_files
@pytest.mark.parametrize("name", NAMES)
def test_page_saves_a_workflow_as_it_was_loaded(page, checkpoints, name):
    load_workflow(page, read(name))

    saved, file = serialized(page), read(name)

    assert saved["nodes"] == file["nodes"]
    assert saved["links"] == file["links"]
    assert saved["groups"] == file["groups"]


@pytest.mark.parametrize("name", NAMES)
def test_vcut_nodes_hold_the_values_that_the_workflow_is_about(page, checkpoints, name):
    load_workflow(page, read(name))

    nodes = serialized(page)["nodes"]

    values = {n["type"]: n["widgets_values"] for n in nodes if n["type"].startswith("VCUT_")}
    assert values == VCUT_VALUES[name]


@pytest.mark.parametrize("name", NAMES)
def test_demo_queues_the_prompt_that_the_page_queues(page, comfyui, checkpoints, name):
    load_workflow(page, read(name))

    queued = prompt_of(page)
    for node in queued.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # 0.3.75's page's own, not known to the server

    assert to_prompt(read(name), comfyui.get("/object_info")) == queued


@on_the_host_of_the_files
@pytest.mark.parametrize("name", NAMES)
def test_workflow_file_is_what_its_maker_makes(page, checkpoints, name):
    assert finish(build(page, RECIPES[name]), name, RECIPES[name]) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_workflow_file_says_which_pack_each_node_is_from(name):
    workflow = read(name)

    packs = {(n["properties"].get("cnr_id"), n["properties"].get("ver")) for n in workflow["nodes"]}

    note = {(None, None)}  # drawn by the page
    assert packs == {("comfy-core", COMFYUI_VERSION), ("vcut-svd", pack_version())} | note


@pytest.mark.parametrize("name", NAMES)
def test_workflow_file_is_in_the_format_0_4(name):
    workflow = read(name)

    assert workflow["version"] == 0.4
    assert uuid.UUID(workflow["id"])
    assert all(len(link) == 6 for link in workflow["links"])
    assert FILES[name].read_text(encoding="utf-8").isascii()


def test_page_offers_the_model_for_download_when_it_is_missing(page, artefacts):
    load_workflow(page, read("svd_xt_vcut_paper"))

    complaints(page).get_by_text(re.compile("svd_xt.safetensors|model is missing")).first.wait_for()
    newer = page.get_by_role("button", name=re.compile("View details|Show missing models"))
    if newer.is_visible():
        newer.click()
        page.get_by_text("Missing Models").wait_for()
    page.screenshot(path=artefacts / "missing_model.png")
    text = page.locator("body").inner_text()
    downloads = page.get_by_role("button", name="Download").count()
    open_again(page)

    folder_first = r"checkpoints( /|.*\n+) ?svd_xt\.safetensors"
    file_first = r"svd_xt\.safetensors\ncheckpoints"
    assert re.search(f"{folder_first}|{file_first}", text)
    assert downloads > 0


@pytest.mark.parametrize("name", NAMES)
def test_template_is_served_with_its_thumbnail(comfyui, name):
    address = f"{comfyui.url}/api/workflow_templates/VCUT/{name}"

    workflow = requests.get(f"{address}.json", timeout=30)
    thumbnail = requests.get(f"{address}.jpg", timeout=30)

    assert name in comfyui.get("/api/workflow_templates")["VCUT"]
    assert workflow.json() == read(name)
    assert thumbnail.headers["Content-Type"] == "image/jpeg"
    assert len(thumbnail.content) < 120_000


def test_template_browser_shows_every_thumbnail(page, artefacts):
    size = page.viewport_size
    page.set_viewport_size(
        {**size, "height": 2 * size["height"]}
    )  # what is out of sight is not there
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("VCUT", exact=True).first.click()
    page.wait_for_function(
        """count => [...document.querySelectorAll('[role=dialog] img')].filter(image =>
            image.naturalWidth === 840).length === count""",
        arg=len(NAMES),
    )
    page.screenshot(path=artefacts / "templates.png")
    shown = dialog.inner_text()
    page.set_viewport_size(size)
    open_again(page)

    assert all(name in shown for name in NAMES)


@pytest.mark.parametrize("class_type", VCUT_NODES)
def test_help_page_is_shown_when_its_button_is_pressed(
    page, comfyui, checkpoints, artefacts, class_type
):
    answer = requests.get(f"{comfyui.url}/extensions/VCUT/docs/{class_type}.md", timeout=30)
    assert answer.status_code == 200
    load_workflow(page, read("svd_vcut"))

    page.mouse.click(*show_node(page, class_type))
    page.get_by_test_id("info-button").click()
    heading = answer.text.splitlines()[0].lstrip("# ").strip()
    help_page = page.locator(".node-help-content")
    help_page.get_by_role("heading", name=heading).first.wait_for()
    page.screenshot(path=artefacts / f"help_{class_type}.png")
    shown = help_page.inner_text()
    page.get_by_test_id("info-button").click()  # closes it again

    assert all(name in shown for name in ("Inputs", "model", "Output"))


def test_each_node_shows_its_own_lines_after_a_run(page, checkpoints, artefacts):
    load_workflow(page, read("svd_vcut"))
    page.evaluate(USE_TINY_MODEL)
    before = vcut_inputs(prompt_of(page))

    page.get_by_test_id("queue-button").click()
    assert page.evaluate("() => window.runEnded") == "execution_success"
    # 4 steps: round(16 * 4 / 25) = 3 guided, so 3 * 2 + 1 = 7 of 8 evaluations.
    scheduler = page.locator(".dom-widget").filter(has_text="7 of 8 UNet evaluations")
    patch = page.locator(".dom-widget").filter(has_text="cross-attention: ")
    scheduler.wait_for()
    patch.wait_for()
    page.locator(".dom-widget video").first.wait_for()
    with whole_graph(page, artefacts / "after_a_run.png"):
        assert page.evaluate(CUT_OFF_TEXTS) == []

    first, second, seconds = scheduler.inner_text().strip().splitlines()
    assert (first, second) == ("7 of 8 UNet evaluations", "guided 3 of 4 steps")
    # 32 layers for cond with uncond, and for cond alone; reused in the other two steps.
    *lines, other_seconds = patch.inner_text().strip().splitlines()
    assert lines == ["cross-attention: 64 computed, 64", "from cache"]
    for shown in (scheduler, patch):  # none is wider than its node: the page breaks in words
        assert shown.evaluate(IS_BROKEN_ANYWHERE) is False
    assert re.fullmatch(r"\d+\.\d s", seconds) and other_seconds == seconds
    assert vcut_inputs(prompt_of(page)) == before


def test_comparison_shows_its_result_after_a_run(page, checkpoints, artefacts):
    load_workflow(page, read("svd_compare"))
    page.evaluate(USE_TINY_MODEL)

    page.get_by_test_id("queue-button").click()
    assert page.evaluate("() => window.runEnded") == "execution_success"
    result = "4 frames of 128x128: PSNR"
    page.locator(".dom-widget").filter(has_text=result).first.wait_for(state="attached")
    show_node(page, "SaveVideo")  # the page shows a video only where it is in sight
    page.locator(".dom-widget video").first.wait_for(state="attached")
    page.wait_for_function(PREVIEWS_ARE_THERE)
    with whole_graph(page, artefacts / "after_a_comparison.png"):
        assert page.evaluate(CUT_OFF_TEXTS) == []

    summary = page.evaluate(SUMMARY)
    assert summary.startswith(result) and "Largest error in frame" in summary


def test_workflow_saved_after_a_run_is_the_same_to_page_and_demo(page, comfyui, checkpoints):
    load_workflow(page, read("svd_vcut"))
    before = vcut_inputs(prompt_of(page))
    # ComfyUI 0.3.75 saves the text under a node as one more widget value.
    saved = serialized(page)
    for node in saved["nodes"]:
        if node["type"] in VCUT_NODES:
            node["widgets_values"].append("guided 1-16 of 25")

    load_workflow(page, saved)

    assert vcut_inputs(prompt_of(page)) == before
    assert vcut_inputs(to_prompt(saved, comfyui.get("/object_info"))) == before


def vcut_inputs(prompt: dict) -> dict:
    """Return the inputs of the VCUT nodes in a prompt, by node type."""
    nodes = prompt.values()
    return {n["class_type"]: n["inputs"] for n in nodes if n["class_type"] in VCUT_NODES}
