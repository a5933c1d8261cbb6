"""ComfyUI's real page in Debian's chromium, ready for a graph; shared by tests and maker."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright
from private_comfyui.install import Host
from private_comfyui.serve import ComfyServer
from recipes import ANIMATE_LCM, SVD, SVD_XT

# What the page would otherwise lay over the canvas on a first visit, and its own check that
# is off by default: every workflow that is loaded must pass the frontend's schema.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Validation.Workflows": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.Persist": False,
}
DEADLINE_MS = 20_000  # for anything the page does by itself, once it is loaded
EMPTY_SPOT = (500, 750)  # away from the middle, where a node is added
SEARCH_IS_OPEN = "() => document.activeElement?.tagName === 'INPUT'"
SEARCH_MS = 1000  # until the search has answered
READY = """() => Boolean(window.app?.vueAppReady && window.app.extensionManager && window.app.graph
    && window.LiteGraph?.registered_node_types?.VCUT_PatchSVDModel)"""

# What ComfyUI 0.3.75 and 0.33.0 log on a new user's first visit, with --disable-all-custom-nodes
# too. A pair: part of the message, part of the address of the file that it is about.
HOST_ERRORS = (
    ("status of 404", "/user.css"),
    ("status of 404", "/favicon.ico"),
    ("status of 404", "/api/userdata?dir=workflows"),
    ("status of 404", "/api/userdata?dir=subgraphs"),
    ("status of 404", "/api/userdata/comfy.templates.json"),
    # A setting's callback that runs before its store is filled.
    ("TypeError: Cannot read properties of undefined (reading 'id')\n    at onChange", ""),
    # The page asks the registry about a workflow's packs, and about nodes without one; the server
    # is started without API nodes, which forbids that.
    ("Connecting to 'https://api.comfy.org/", ""),
    # It asks there how large a missing model is.
    ("Connecting to 'https://huggingface.co/", ""),
    ("Fetch API cannot load https://huggingface.co/", ""),
    ("Error fetching file size", ""),
    # 0.33.0's settings ask for the graph before there is one.
    ("ComfyApp graph accessed before initialization", ""),
    # Newer pages ask for a list of jobs that 0.3.75 does not have yet.
    ("status of 404", "/api/jobs?"),
    ("JobsApiError", ""),
    # A help page is asked for in the user's language before it is asked for as such.
    ("status of 404", "/en.md"),
)


def chromium() -> str | None:
    """Return the path of Debian's chromium, None where it is not installed."""
    return shutil.which("chromium")


@contextmanager
def page_of(server: ComfyServer, errors: list[str]) -> Iterator[Page]:
    """Open the page of ``server``; what goes wrong in it from here on is added to ``errors``."""
    write_settings(server)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.on("console", lambda message: _note(message, errors))
        page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
        page.goto(server.url)
        page.wait_for_function(READY)
        page.wait_for_load_state("networkidle")
        page.set_default_timeout(DEADLINE_MS)
        yield page
        browser.close()


def write_settings(server: ComfyServer) -> None:
    """Give the server's only user the settings of a second visit."""
    folder = server.folder / "user" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comfy.settings.json").write_text(json.dumps(SETTINGS))


def upload_example_picture(server: ComfyServer, host: Host) -> None:
    """Put in place the example.png that every ComfyUI is installed with."""
    server.upload(host.comfyui / "input" / "example.png")


@contextmanager
def placeholder_checkpoints(server: ComfyServer) -> Iterator[None]:
    """Let the page find all the workflows' model files, as it does for an artist who has them.

    They are empty files in the server's own folder: the page only looks at names. Nothing may
    load them.
    """
    models = server.folder / "models"
    files = [models / file.folder / file.file for file in (SVD, SVD_XT, ANIMATE_LCM)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink()


def refresh_lists(page: Page) -> None:
    """Let the page look again at which files there are, as pressing R does."""
    page.evaluate("() => window.app.refreshComboInNodes()")
    page.evaluate("() => window.app.extensionManager.toast.removeAll()")  # it says that it did
    page.wait_for_function("() => !document.querySelector('.p-toast-message')")


def load_workflow(page: Page, workflow: dict) -> None:
    """Load ``workflow`` as dropping its file does, in place of what is there."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    wait_for_pictures(page)


def prompt_of(page: Page) -> dict:
    """Return the prompt that the page would queue."""
    prompt = "window.app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))"
    return json.loads(page.evaluate(prompt))


def complaints(page: Page) -> Locator:
    """Return every dialog, toast and, of newer pages, error that lies over the canvas."""
    return page.locator("[role=dialog], .p-toast-message, [data-testid=error-overlay]")


def open_again(page: Page) -> None:
    """Load the page anew, which closes whatever lies over the canvas or beside it."""
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_load_state("networkidle")


def show_node(page: Page, class_type: str) -> tuple[float, float]:
    """Bring a node to the middle of the canvas and return where its title is on the page."""
    place = """class_type => {
        const {canvas, graph} = window.app
        const node = graph.nodes.find(node => node.type === class_type)
        const box = canvas.canvas.getBoundingClientRect()
        canvas.ds.scale = 1
        canvas.ds.offset = [box.width / 2 - node.pos[0], box.height / 2 - node.pos[1]]
        canvas.setDirty(true, true)
        return [box.left + box.width / 2 + 80, box.top + box.height / 2 - 12]
    }"""
    return tuple(page.evaluate(place, class_type))


def search_nodes(page: Page, words: str) -> list[str]:
    """Return what the page's node search offers for ``words``, the best first; it stays open."""
    toggle = "window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
    if not page.evaluate(SEARCH_IS_OPEN):
        page.evaluate(f"() => {toggle}")
    page.wait_for_function(SEARCH_IS_OPEN)
    page.keyboard.press("Control+a")
    page.keyboard.type(words)
    page.wait_for_function("words => document.activeElement?.value === words", arg=words)
    page.wait_for_timeout(SEARCH_MS)
    offered = [text.split("\n")[0].strip() for text in page.get_by_role("option").all_inner_texts()]
    return [name for name in offered if name not in ("", "No results found")]


def add_found(page: Page) -> None:
    """Put the first node that ``search_nodes`` found on the canvas."""
    page.keyboard.press("Enter")
    page.wait_for_timeout(SEARCH_MS)
    page.mouse.click(*EMPTY_SPOT)  # newer pages hang it on the mouse first


def serialized(page: Page) -> dict:
    """Return what ComfyUI would save of the graph in the page."""
    # As text: playwright would hand over null for what JavaScript leaves undefined.
    return json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))


def wait_for_pictures(page: Page) -> None:
    """Wait until every LoadImage node shows its picture and the canvas is drawn with it."""
    page.wait_for_function(
        """() => window.app.graph.nodes.filter(node => node.type === 'LoadImage')
            .every(node => node.imgs?.length && node.imgs[0].complete)"""
    )
    page.evaluate(
        """() => new Promise(done => {
            window.app.graph.setDirtyCanvas(true, true)
            requestAnimationFrame(() => requestAnimationFrame(() => done()))
        })"""
    )


@contextmanager
def whole_graph(page: Page, picture: Path, margin: int = 30) -> Iterator[None]:
    """Show the whole graph at its natural size, without menus, and save a picture of that."""
    left, top, right, bottom = page.evaluate(
        """() => {
            const items = [...window.app.graph.nodes, ...window.app.graph.groups]
            const boxes = items.map(item => item.boundingRect ?? item._bounding)
            return [
                Math.min(...boxes.map(box => box[0])), Math.min(...boxes.map(box => box[1])),
                Math.max(...boxes.map(box => box[0] + box[2])),
                Math.max(...boxes.map(box => box[1] + box[3])),
            ]
        }"""
    )
    size = {"width": int(right - left) + 2 * margin, "height": int(bottom - top) + 2 * margin}
    before = page.viewport_size
    page.set_viewport_size(size)
    focus(page, True)
    page.evaluate(
        """offset => {
            window.app.canvas.deselectAll()
            window.app.canvas.ds.scale = 1
            window.app.canvas.ds.offset = offset
        }""",
        [margin - left, margin - top],
    )
    page.wait_for_function("size => window.app.canvas.canvas.clientWidth === size.width", arg=size)
    wait_for_pictures(page)
    page.screenshot(path=picture, style=".comfy-menu-hamburger { visibility: hidden }")
    try:
        yield
    finally:
        focus(page, False)
        page.set_viewport_size(before)


def focus(page: Page, is_on: bool) -> None:
    """Hide ComfyUI's menus, or show them again."""
    page.evaluate("is_on => { window.app.extensionManager.focusMode = is_on }", is_on)


def _note(message: ConsoleMessage, errors: list[str]) -> None:
    if message.type != "error":
        return
    address = message.location.get("url", "")
    if any(text in message.text and part in address for text, part in HOST_ERRORS):
        return
    errors.append(f"{message.text} ({address})")
