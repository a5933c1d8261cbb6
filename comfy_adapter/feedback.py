"""What a node tells while and after it works: progress, a text under the node, a run's counts."""

import html
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import comfy.model_management
import comfy.utils
from server import PromptServer

logger = logging.getLogger(__name__)

NODE_WIDTH = 34  # characters that a node of default width shows in a line


def node_id_of(node) -> str | None:
    """Return the id in the graph of a V3 node class that runs, None when a script called it."""
    return getattr(node.hidden, "unique_id", None)


def show_on_narrow_node(lines: Sequence[str], node_id: str | None) -> None:
    """Show ``lines`` under a node of default width, broken between words.

    Left alone, ComfyUI's page breaks them anywhere, inside of numbers too.
    """
    show_on_node([part for line in lines for part in textwrap.wrap(line, NODE_WIDTH)], node_id)


def show_on_node(lines: Sequence[str], node_id: str | None) -> None:
    """Show ``lines`` under a node, where the host has a server that can.

    They may hold what a user typed. ComfyUI's page puts them into the document as HTML, so they
    are escaped here.
    """
    server = getattr(PromptServer, "instance", None)
    if node_id is None or server is None or not hasattr(server, "send_progress_text"):
        return
    try:
        escaped = html.escape("\n".join(lines), quote=False)
        server.send_progress_text(escaped, node_id, server.client_id)
    except Exception:  # a text that cannot be shown must not cost the user the result
        logger.debug("VCUT: could not show the text on the node", exc_info=True)


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
