"""How each workflow opens: on the host's page and on the newest, in either look."""

import json

import pytest
from comfy_page import (
    complaints,
    load_workflow,
    open_again,
    page_of,
    placeholder_checkpoints,
    show_node,
)
from private_comfyui.install import WORKFLOWS

pytestmark = pytest.mark.browser

NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
WINDOW = {"width": 1600, "height": 1000}
NODE, TITLE = "VCUT_GuidanceScheduler", "VCUT Guidance Scheduler"
SETTING = "Comfy.VueNodes.Enabled"
SETTLE_MS = 500  # nodes of Nodes 2.0 grow to what is in them

# Each node's type and its left, top, right and bottom in pixels of the page.
BOXES = """() => {
    const {canvas, graph} = window.app
    const {scale, offset} = canvas.ds
    const {left, top} = canvas.canvas.getBoundingClientRect()
    return graph.nodes.map(node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`)
        if (element) {
            const box = element.getBoundingClientRect()
            return [node.type, box.left, box.top, box.right, box.bottom]
        }
        const [x, y, width, height] = node.boundingRect
        return [node.type, left + (x + offset[0]) * scale, top + (y + offset[1]) * scale,
            left + (x + width + offset[0]) * scale, top + (y + height + offset[1]) * scale]
    })
}"""

# The page draws a link as a Bezier curve that leaves and enters level, a quarter of the distance
# far (its PathRenderer). Sampled here between the page's own positions of the slots.
LINKS_BEHIND_NODES = """() => {
    const {graph} = window.app
    const behind = []
    for (const link of graph.links.values()) {
        const from = graph.getNodeById(link.origin_id), to = graph.getNodeById(link.target_id)
        const [x0, y0] = from.getConnectionPos(false, link.origin_slot)
        const [x3, y3] = to.getConnectionPos(true, link.target_slot)
        const reach = Math.max(30, Math.hypot(x3 - x0, y3 - y0) / 4)
        const [x1, x2] = [x0 + reach, x3 - reach]
        for (const node of graph.nodes) {
            if (node === from || node === to) continue
            const [left, top, width, height] = node.boundingRect
            for (let t = 0; t <= 1; t += 1 / 512) {
                const [a, b, c, d] =
                    [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3]
                const x = a * x0 + b * x1 + c * x2 + d * x3 - left
                const y = (a + b) * y0 + (c + d) * y3 - top
                if (x < 0 || y < 0 || x > width || y > height) continue
                behind.push(`${from.title} -> ${to.title} behind ${node.title}`)
                break
            }
        }
    }
    return behind
}"""

# Where the first input of a node stands on the classic page.
FIRST_INPUT = """type => {
    const {canvas, graph} = window.app
    const node = graph.nodes.find(node => node.type === type)
    const {left, top} = canvas.canvas.getBoundingClientRect()
    const {scale, offset} = canvas.ds
    const [x, y] = [node.pos[0] + 60, node.pos[1] + node.widgets[0].last_y + 10]
    return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
}"""


@pytest.fixture(scope="module", params=["classic", "Nodes 2.0"])
def look(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def page_errors() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(server, look, page_errors):
    """The page in one of its two looks, for an artist who has the checkpoints."""
    page_errors.clear()
    with placeholder_checkpoints(server), page_of(server, page_errors) as page:
        page.set_viewport_size(WINDOW)
        exists = page.evaluate(
            "name => window.app.extensionManager.setting.get(name) !== undefined", SETTING
        )
        if look == "Nodes 2.0" and not exists:
            pytest.skip("this page has no Nodes 2.0")
        page.evaluate(
            "([name, on]) => window.app.extensionManager.setting.set(name, on)",
            [SETTING, look == "Nodes 2.0"],
        )
        yield page


@pytest.fixture(scope="module", params=NAMES)
def opened(request, page, look):
    """The page with one of the workflows."""
    open_workflow(page, request.param)
    drawn = page.locator("[data-node-id]").count()
    assert drawn == (page.evaluate("window.app.graph.nodes.length") if look != "classic" else 0)
    return page


def open_workflow(page, name: str) -> None:
    load_workflow(page, json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
    page.wait_for_timeout(SETTLE_MS)


def test_workflow_opens_without_complaint(opened, page_errors):
    assert complaints(opened).all_inner_texts() == []
    unknown = "app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type])"
    assert opened.evaluate(f"{unknown}.map(node => node.type)") == []
    assert page_errors == []


def test_first_view_is_readable(opened):
    assert opened.evaluate("() => window.app.canvas.low_quality") is False


def test_first_view_shows_note_loader_and_picture(opened, server, look, comfyui):
    if server is comfyui and look != "classic":
        pytest.skip("the Nodes 2.0 of 0.3.75, a beta, draws the whole graph a fifth larger")
    first = {"MarkdownNote", "LoadImage", "ImageOnlyCheckpointLoader", "VCUT_LoadSVDCheckpoint"}
    boxes = [box for kind, *box in opened.evaluate(BOXES) if kind in first]
    assert len(boxes) == 3
    for left, top, right, bottom in boxes:
        # Between the page's menus.
        assert 60 < left and 80 < top and right < WINDOW["width"] and bottom < WINDOW["height"]


def test_no_node_lies_over_another(opened):
    boxes = opened.evaluate(BOXES)
    overlaps = [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i] if _overlap(a, b)]
    assert overlaps == []


def _overlap(a: list, b: list) -> bool:
    _, left, top, right, bottom = a
    _, other_left, other_top, other_right, other_bottom = b
    return left < other_right and other_left < right and top < other_bottom and other_top < bottom


def test_no_link_runs_behind_a_node(opened, look):
    if look != "classic":
        pytest.skip("the same links between nodes of the same places")
    assert opened.evaluate(LINKS_BEHIND_NODES) == []


def test_input_shows_its_tooltip(page, server, look):
    open_workflow(page, "svd_vcut")
    given = server.get(f"/object_info/{NODE}")[NODE]["input"]["required"]
    name, (_, options) = list(given.items())[1]
    if look == "classic":
        page.mouse.move(*(place - 3 for place in page.evaluate(FIRST_INPUT, NODE)))
        page.mouse.move(*page.evaluate(FIRST_INPUT, NODE))
    else:
        page.locator("[data-node-id]").get_by_text(name, exact=True).first.hover()
    page.get_by_text(options["tooltip"]).first.wait_for()


def test_help_opens(page, look, artefacts):
    open_workflow(page, "svd_vcut")
    at = show_node(page, NODE)
    page.wait_for_timeout(SETTLE_MS)
    page.mouse.click(*at)
    page.get_by_test_id("info-button").click()
    page.locator(".node-help-content").get_by_role("heading", name=TITLE).first.wait_for()
    page.screenshot(path=artefacts / f"help_{look}.png")
    open_again(page)
