"""What a node tells while and after it works: progress, a text under the node, a run's counts."""

import html
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import comfy.model_management
import comfy.utils
from server import PromptServer, web

logger = logging.getLogger(__name__)

PAGE_ROUTE = "/vcut/page"
_pages: set[str] = set()  # client ids of the pages in which nodes/web/lines.js shows the lines

NODE_WIDTH = 34  # characters that a node of default width shows in a line


def node_id_of(node) -> str | None:
    """Return the id in the graph of a V3 node class that runs, None when a script called it."""
    return getattr(node.hidden, "unique_id", None)


def show_on_narrow_node(lines: Sequence[str], node_id: str | None) -> None:
    """Show ``lines`` under a node of default width, broken between words.

    Left alone, ComfyUI's page breaks them anywhere, inside of numbers too.
    """
    show_on_node([part for line in lines for part in textwrap.wrap(line, NODE_WIDTH)], node_id)


def listen_to_pages() -> None:
    """Let pages tell that they show the lines by themselves, with nodes/web/lines.js."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.post(PAGE_ROUTE)
    async def note_page(request):
        _pages.add(str((await request.json())["client_id"]))
        return web.json_response({})


def page_shows_videos() -> bool:
    """Return whether the page that queued the run has the pack's own script."""
    return getattr(getattr(PromptServer, "instance", None), "client_id", None) in _pages


def show_on_node(lines: Sequence[str], node_id: str | None, videos: Mapping | None = None) -> None:
    """Show ``lines`` on a node, where the host has a server that can.

    As an event ``vcut.lines`` for the pack's own script. A page without it gets ComfyUI's text
    under a node, which it puts into the document as HTML: lines may hold what a user typed, so they
    are escaped. Pages from 1.55.18 on take that text away when the run succeeds.

    videos: two videos for nodes/web/compare.js, which says what it needs of them.
    """
    server = getattr(PromptServer, "instance", None)
    if node_id is None or server is None:
        return
    try:
        data = {"workflow": _running_workflow(server), "node": node_id, "lines": list(lines)}
        if videos:
            data["videos"] = dict(videos)
        server.send_sync("vcut.lines", data, server.client_id)
        if server.client_id not in _pages and hasattr(server, "send_progress_text"):
            escaped = html.escape("\n".join(lines), quote=False)
            server.send_progress_text(escaped, node_id, server.client_id)
    except Exception:  # a text that cannot be shown must not cost the user the result
        logger.debug("VCUT: could not show the text on the node", exc_info=True)


def _running_workflow(server) -> str | None:
    """Return the id of the workflow whose prompt runs, None where the page sent none."""
    queue = getattr(server, "prompt_queue", None)
    for item in list(queue.currently_running.values()) if queue else []:
        workflow = (item[3].get("extra_pnginfo") or {}).get("workflow") or {}
        return workflow.get("id")
    return None


def send_run_event(lines: Mapping[str, list[str]], log_line: str, counts: dict) -> None:
    """Send what a run did to the page or program that queued it, as an event ``vcut.run``.

    lines: a node's id -> what it shows. counts: plain values only, as they become JSON in the
    server's own thread.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    try:
        data = {"lines": dict(lines), "log_line": log_line, "counts": counts}
        server.send_sync("vcut.run", data, server.client_id)
    except Exception:  # an event that cannot be sent must not cost the user the result
        logger.debug("VCUT: could not send the counts of the run", exc_info=True)


def with_progress(items: Iterable, total: int) -> Iterator:
    """Yield ``items``, moving the node's progress bar; stops when the user interrupts."""
    bar = comfy.utils.ProgressBar(total)
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)
