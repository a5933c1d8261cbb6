"""VCUT Compare Videos plays both videos in one place: on both pages, in either look."""

import json
from io import BytesIO
from itertools import count
from uuid import uuid4

import pytest
from comfy_page import load_workflow, open_again, serialized
from PIL import Image
from vcut.tests.browser import test_lines_on_pages as lines
from vcut.tests.support.page_scripts import RUN

pytestmark = pytest.mark.browser
open_page = lines.open_page

numbers = count()
RED, GREEN, BLUE, YELLOW = 0xFF0000, 0x00FF00, 0x0000FF, 0xFFFF00
PAIRS = {(RED, BLUE), (GREEN, YELLOW)}  # what the two videos show at one time
COMPARISON = """({labels, pairs}) => {
    const {graph} = window.app
    const add = (type, values, x, y) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        graph.add(node)
        for (const widget of node.widgets ?? [])
            if (widget.name in values) widget.value = values[widget.name]
        return node
    }
    const compare = add('VCUT_CompareVideos', labels, 600, 60)
    compare.connect(0, add('PreviewImage', {}, 1000, 60), 'images')
    for (const video of [0, 1]) {
        const batch = add('ImageBatch', {}, 330, 60 + 400 * video)
        pairs.forEach((pair, index) => {
            const values = {width: 96, height: 64, batch_size: 1, color: pair[video]}
            add('EmptyImage', values, 20, 60 + 400 * video + 200 * index).connect(0, batch, index)
        })
        batch.connect(0, compare, video)
    }
    Object.assign(window.app.canvas.ds, {scale: 1, offset: [80, 40]})
    window.app.canvas.setDirty(true, true)
}"""
BYPASS = "() => { window.app.graph.nodes.find(n => n.type === 'VCUT_CompareVideos').mode = 4 }"


@pytest.fixture
def page(open_page):
    """An empty page; no error of ours may come up."""
    page, errors = open_page
    empty = {"nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0, "version": 0.4}
    load_workflow(page, {**empty, "id": str(uuid4())})
    errors.clear()
    yield page
    assert [e for e in errors if "vcut" in e.lower() or e.startswith("uncaught")] == []


def _compare(page, label_a: str = "first") -> None:
    """Compare two videos of two frames, each frame of one colour, as no run before did."""
    labels = {"label_a": label_a, "label_b": f"second {next(numbers)}"}
    page.evaluate(COMPARISON, {"labels": labels, "pairs": sorted(PAIRS)})
    _run(page)


def _run(page) -> None:
    assert page.evaluate(RUN) == "execution_success"
    page.wait_for_timeout(lines.SETTLE_MS)


def _place(page, part: float) -> tuple[float, float]:
    """Return where on the page a part of the slider's width is, below its middle."""
    box = page.locator(".vcut_slider").bounding_box()
    return box["x"] + part * box["width"], box["y"] + 0.7 * box["height"]


def _colours(page, *parts: float) -> tuple[int, ...]:
    """Return the colour at each part of the slider's width, at one time."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    return tuple(_nearest(picture.getpixel(_place(page, part))) for part in parts)


def _nearest(pixel: tuple[int, ...]) -> int:
    def distance(colour: int) -> int:
        return sum(abs(a - b) for a, b in zip(pixel, colour.to_bytes(3, "big"), strict=True))

    return min((RED, GREEN, BLUE, YELLOW), key=distance)


def test_line_follows_the_mouse_and_the_arrow_keys(page, artefacts, request):
    _compare(page)
    page.screenshot(path=artefacts / f"slider_{request.node.callspec.id}.png")
    page.mouse.move(*_place(page, 0.25))
    assert _colours(page, 0.2, 0.3) in PAIRS
    page.mouse.move(*_place(page, 0.75))
    assert _colours(page, 0.7, 0.8) in PAIRS
    page.mouse.click(*_place(page, 0.5))
    for _ in range(20):  # a hundredth each
        page.keyboard.press("ArrowRight")
    assert _colours(page, 0.65, 0.75) in PAIRS


def test_both_videos_play_in_step(page):
    _compare(page)
    seen = set()
    for _ in range(12):
        seen.add(_colours(page, 0.3, 0.7))
        page.wait_for_timeout(70)
    assert seen == PAIRS


def test_slider_is_there_once_after_a_second_run_and_gone_when_bypassed(page):
    _compare(page)
    page.evaluate("() => { window.app.graph.nodes[0].widgets[0].value = 'changed' }")
    _run(page)
    slider = page.locator(".vcut_slider")
    assert slider.count() == 1 and page.locator(".vcut_a").inner_text() == "changed"
    page.evaluate(BYPASS)
    _run(page)
    assert slider.count() == 0


def test_workflow_holds_nothing_of_the_slider(page):
    _compare(page)
    (node,) = [n for n in serialized(page)["nodes"] if n["type"] == "VCUT_CompareVideos"]
    assert len(node["widgets_values"]) == 3
    assert "webp" not in json.dumps(serialized(page))


def test_slider_is_back_when_the_page_was_loaded_anew(page):
    _compare(page)
    saved = serialized(page)
    open_again(page)
    load_workflow(page, saved)
    page.wait_for_timeout(lines.SETTLE_MS)
    assert _colours(page, 0.3, 0.7) in PAIRS


def test_label_is_text(page):
    typed = "<img src=x onerror=alert(1)>"
    _compare(page, label_a=typed)
    assert page.locator(".vcut_a").inner_text() == typed
    assert page.locator(".vcut_slider img").count() == 0
