"""What nodes say of a run stays on them: on the host's page and on the newest, in either look."""

import json

import pytest
from comfy_page import load_workflow, page_of, serialized
from private_comfyui.install import WORKFLOWS
from vcut.tests.support.page_scripts import RUN, USE_TINY_MODEL

pytestmark = pytest.mark.browser

SCHEDULER = "7 of 8 UNet evaluations\nguided 3 of 4 steps"
TEXT_OF = """type => {
    const node = window.app.graph.nodes.find(node => node.type === type)
    return node.widgets.find(widget => widget.name === 'vcut_lines')?.element.innerText ?? null
}"""
SET_SEED = """seed => {
    const sampler = window.app.graph.nodes.find(node => node.type === 'KSampler')
    sampler.widgets.find(widget => widget.name === 'seed').value = seed
}"""
RUN_ANOTHER_MEANWHILE = """async shown => {
    const {app} = window
    await app.loadGraphData({...shown, id: crypto.randomUUID()})
    const find = type => app.graph.nodes.find(node => node.type === type)
    find('VCUT_GuidanceScheduler').mode = 4
    find('KSampler').widgets.find(widget => widget.name === 'steps').value = 25
    const ended = new Promise(end => {
        app.api.addEventListener('execution_success', end, {once: true})
    })
    await app.queuePrompt(0)
    await app.loadGraphData(shown)
    await ended
}"""
SETTLE_MS = 1500  # newer pages take the host's own texts away after a run


@pytest.fixture(scope="module", params=["classic", "Nodes 2.0"])
def open_page(request, server, comfyui):
    """The page in one of its two looks, with the errors that its console told."""
    if request.param == "Nodes 2.0" and server is comfyui:
        pytest.skip("Nodes 2.0 of 0.3.75 is a beta that is off by default")
    errors: list[str] = []
    with page_of(server, errors) as page:
        enabled = json.dumps(request.param == "Nodes 2.0")
        page.evaluate(
            f"() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {enabled})"
        )
        yield page, errors


@pytest.fixture
def page(open_page):
    """The page with a workflow that runs on the tiny SVD; no error of ours may come up."""
    page, errors = open_page
    workflow = json.loads((WORKFLOWS / "svd_vcut.json").read_text(encoding="utf-8"))
    load_workflow(page, workflow)
    page.keyboard.press("Escape")  # the dialog of the missing model
    page.evaluate(USE_TINY_MODEL)
    yield page
    assert [error for error in errors if "vcut" in error.lower()] == []


def _run(page, seed: int) -> None:
    page.evaluate(SET_SEED, seed)
    assert page.evaluate(RUN) == "execution_success"
    page.wait_for_timeout(SETTLE_MS)


def _text(page, class_type: str) -> str | None:
    return page.evaluate(TEXT_OF, class_type)


def test_lines_stay_after_a_run_and_after_a_second_one(page):
    for seed in (1, 2):
        _run(page, seed)
        assert _text(page, "VCUT_GuidanceScheduler").startswith(SCHEDULER)
        assert _text(page, "VCUT_PatchSVDModel").startswith("cross-attention: 64 computed")
        assert _text(page, "VCUT_DecodeVideo").startswith("4 frames decoded as one video")
    shown = page.locator(".vcut_lines").all()
    assert len([text for text in shown if text.is_visible()]) == 3
    # The host's own text would be a second copy.
    assert page.get_by_text("7 of 8 UNet evaluations").count() == 1


BYPASS = "() => { window.app.graph.nodes.find(n => n.type === 'VCUT_GuidanceScheduler').mode = 4 }"
UNCONNECT = """() => {
    const find = type => window.app.graph.nodes.find(node => node.type === type)
    find('VCUT_PatchSVDModel').connect(0, find('VideoLinearCFGGuidance'), 'model')
}"""


@pytest.mark.parametrize("leave_out", [BYPASS, UNCONNECT], ids=["bypassed", "not connected"])
def test_lines_are_gone_when_a_node_was_left_out(page, leave_out):
    _run(page, 3)
    assert _text(page, "VCUT_GuidanceScheduler").startswith(SCHEDULER)
    page.evaluate(leave_out)
    _run(page, 4)
    assert _text(page, "VCUT_GuidanceScheduler") is None
    assert _text(page, "VCUT_PatchSVDModel").startswith("cross-attention: 32 computed")


def test_workflow_holds_nothing_of_the_lines(page):
    before = serialized(page)
    _run(page, 0)
    after = serialized(page)
    values = [[node.get("widgets_values") for node in graph["nodes"]] for graph in (before, after)]
    assert values[0] == values[1] and "7 of 8" not in json.dumps(after)


def test_lines_are_back_when_the_workflow_is_loaded_again(page):
    _run(page, 5)
    load_workflow(page, serialized(page))
    page.wait_for_timeout(SETTLE_MS)
    assert _text(page, "VCUT_GuidanceScheduler").startswith(SCHEDULER)


def test_lines_of_another_workflow_are_not_shown(page):
    _run(page, 6)
    load_workflow(page, {**serialized(page), "id": "another"})
    assert _text(page, "VCUT_GuidanceScheduler") is None


def test_run_of_another_workflow_takes_no_lines_away(page):
    _run(page, 7)
    shown = serialized(page)
    page.evaluate(RUN_ANOTHER_MEANWHILE, shown)
    page.wait_for_timeout(SETTLE_MS)
    assert _text(page, "VCUT_GuidanceScheduler").startswith(SCHEDULER)


def test_text_is_text(page):
    typed = "<img src=x onerror=alert(1)> www.example.com"
    page.evaluate(
        """text => {
            const {id} = window.app.graph.nodes.find(n => n.type === 'VCUT_DecodeVideo')
            window.app.api.dispatchCustomEvent(
                'vcut.lines', {workflow: window.app.graph.id, node: String(id), lines: [text]})
        }""",
        typed,
    )
    assert _text(page, "VCUT_DecodeVideo") == typed
    shown = page.locator(".vcut_lines").filter(has_text="onerror")
    assert shown.locator("*").count() == 0
