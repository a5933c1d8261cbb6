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
OWN_TOAST = "Prefer the legacy design?"  # of 0.3.75 when Nodes 2.0 is switched on
FIRST = {"MarkdownNote", "LoadImage", "ImageOnlyCheckpointLoader", "VCUT_LoadSVDCheckpoint"}
UNKNOWN_NODES = """() => window.app.graph.nodes.map(node => node.type)
    .filter(type => !LiteGraph.registered_node_types[type])"""

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
def is_beta(server, look, comfyui) -> bool:
    """Whether this is the Nodes 2.0 of 0.3.75: a fifth larger, notes higher than they are saved."""
    return server is comfyui and look != "classic"


@pytest.fixture(scope="module")
def page(server, look):
    """The page in one of its two looks, for an artist who has the checkpoints."""
    errors: list[str] = []
    with placeholder_checkpoints(server), page_of(server, errors) as page:
        page.set_viewport_size(WINDOW)
        exists = "name => window.app.extensionManager.setting.get(name) !== undefined"
        if look == "Nodes 2.0" and not page.evaluate(exists, SETTING):
            pytest.skip("this page has no Nodes 2.0")
        set_look = "([name, on]) => window.app.extensionManager.setting.set(name, on)"
        page.evaluate(set_look, [SETTING, look == "Nodes 2.0"])
        yield page
    assert errors == []


@pytest.fixture(scope="module")
def views(page) -> dict[str, dict]:
    """What there is to say of each workflow's first view, by its name; each is opened once."""
    return {name: _view(page, name) for name in NAMES}


def _view(page, name: str) -> dict:
    open_workflow(page, name)
    return {
        "complaints": complaints(page).filter(has_not_text=OWN_TOAST).all_inner_texts(),
        "unknown nodes": page.evaluate(UNKNOWN_NODES),
        "is without text": page.evaluate("() => window.app.canvas.low_quality"),
        "nodes of Nodes 2.0": page.locator("[data-node-id]").count(),
        "boxes": page.evaluate(BOXES),
        "links behind nodes": page.evaluate(LINKS_BEHIND_NODES),
    }


def open_workflow(page, name: str) -> None:
    load_workflow(page, json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
    page.wait_for_timeout(SETTLE_MS)


def test_every_workflow_opens_without_complaint(views):
    for name, view in views.items():
        assert (name, view["complaints"], view["unknown nodes"]) == (name, [], [])


def test_every_workflow_opens_in_the_look_that_is_tested(views, look):
    for name, view in views.items():
        expected = 0 if look == "classic" else len(view["boxes"])
        assert (name, view["nodes of Nodes 2.0"]) == (name, expected)


def test_first_view_is_readable(views):
    assert [name for name, view in views.items() if view["is without text"]] == []


def test_first_view_shows_note_loader_and_picture(views, is_beta):
    if is_beta:
        pytest.skip("larger than it was saved")
    for name, view in views.items():
        boxes = [box for kind, *box in view["boxes"] if kind in FIRST]
        assert (name, len(boxes)) == (name, 3)
        for left, top, right, bottom in boxes:  # between the page's menus
            assert 60 < left and 80 < top, name
            assert right < WINDOW["width"] and bottom < WINDOW["height"], name


def test_no_node_lies_over_another(views, is_beta):
    if is_beta:
        pytest.skip("notes lie over the loader")
    for name, view in views.items():
        boxes = view["boxes"]
        over = [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i] if _overlap(a, b)]
        assert (name, over) == (name, [])


def _overlap(a: list, b: list) -> bool:
    _, left, top, right, bottom = a
    _, other_left, other_top, other_right, other_bottom = b
    return left < other_right and other_left < right and top < other_bottom and other_top < bottom


def test_no_link_runs_behind_a_node(views, look):
    if look != "classic":
        pytest.skip("nodes and links are where they are on the classic page")
    for name, view in views.items():
        assert (name, view["links behind nodes"]) == (name, [])


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
