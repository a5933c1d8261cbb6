"""The reports of finished runs, kept for VCUT Run Report: it finds the one of its samples.

A run knows the latent that it returns, not the LATENT that the host makes of it: that lies on
another device, and in half precision where the user asks for that. So a run is found by what the
latent holds. Two runs may give the same, one of them without VCUT; then the graph tells them apart.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from comfy_execution.graph_utils import is_link

MAX_REPORTS = 64
_Key = tuple[bytes | None, frozenset[str]]  # of the latent; ids of the nodes that left settings
_reports: OrderedDict[_Key, list[str]] = OrderedDict()  # the newest last


def keep_report(latent, node_ids: Mapping[str, str | None], lines: list[str]) -> None:
    """Keep the lines of a run that returned ``latent``; node_ids: as in VCUTSettings."""
    key = fingerprint(latent), frozenset(filter(None, node_ids.values()))
    _reports[key] = lines
    _reports.move_to_end(key)
    while len(_reports) > MAX_REPORTS:
        _reports.popitem(last=False)


def report_of(latent, node) -> list[str] | None:
    """Return the lines of the newest run that made ``latent`` in front of ``node``, or None.

    node: a V3 node class that runs, with the hidden inputs unique_id and dynprompt.
    """
    wanted, before = fingerprint(latent), _nodes_before(node)
    if before is not None and not any(kind.startswith("VCUT_") for kind in before.values()):
        return None
    runs = [
        (node_ids, lines)
        for (found, node_ids), lines in reversed(_reports.items())
        if wanted and found == wanted
    ]
    # The host may have taken a node's output from an equal node's, with that one's id.
    own = [lines for node_ids, lines in runs if node_ids <= (before or {}).keys()]
    return next(iter(own + [lines for _node_ids, lines in runs]), None)


def fingerprint(latent) -> bytes | None:
    """Return a hash of a latent's values in half precision and its shape, None for no tensor."""
    if not isinstance(latent, torch.Tensor):
        return None
    values = latent.detach().to("cpu", torch.float16).contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).digest()


def _nodes_before(node) -> dict[str, str] | None:
    """Return id -> type of all nodes that ``node`` depends on, None when a script called it."""
    graph = getattr(node.hidden, "dynprompt", None)
    if graph is None:
        return None
    before: dict[str, str] = {}
    waiting = [node.hidden.unique_id]
    while waiting:
        inputs = graph.get_node(waiting.pop())["inputs"].values()
        new = {value[0] for value in inputs if is_link(value)} - before.keys()
        before |= {node_id: graph.get_node(node_id)["class_type"] for node_id in new}
        waiting += new
    return before
