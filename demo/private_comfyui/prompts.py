"""Turns a workflow file into the prompt that ComfyUI queues, and edits prompts for the demo.

A workflow (what the frontend saves) holds positions and widget values in order; a prompt (API
format) holds ``{node id: {"class_type": ..., "inputs": {name: value or [node id, output]}}}``.
Standard library only: workflows are checked before anything is installed.
"""

import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path

from private_comfyui.environments import PACK

MUTED, BYPASSED = 2, 4
VIRTUAL = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # newer than 0.3.75
WIDGET_DEFAULTS = {
    "INT": 0,
    "FLOAT": 0,
    "STRING": "",
    "BOOLEAN": False,
    "COMBO": None,
    DYNAMIC_COMBO: None,
}
STOCK_LOADER = "ImageOnlyCheckpointLoader"
PRUNED_LOADER = "VCUT_LoadSVDCheckpoint"
UNET_LOADER = "UNETLoader"  # of few-step weights beside a checkpoint
COMPARISON = "VCUT_CompareVideos"  # two videos go in
DECODER, STOCK_DECODER = "VCUT_DecodeVideo", "VAEDecode"


def _model_sockets(folder: Path) -> dict[str, set[str]]:
    """Return the pack's node ids with which of Input and Output each node has for a MODEL.

    Read from the source files: the node classes cannot be imported before ComfyUI is installed.
    """
    found = {}
    for file in sorted(folder.rglob("*.py")):
        for definition in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(definition, ast.ClassDef):
                continue
            parts = list(ast.walk(definition))
            attributes = (part for part in parts if isinstance(part, ast.Attribute))
            # io.Model.Input and io.Model.Output
            sockets = {a.attr for a in attributes if ast.unparse(a.value) == "io.Model"}
            keywords = (part for part in parts if isinstance(part, ast.keyword))
            found |= {
                keyword.value.value: sockets
                for keyword in keywords
                if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
            }
    return found


_SOCKETS = _model_sockets(PACK / "nodes")
VCUT_NODES = tuple(node for node, sockets in _SOCKETS.items() if "Output" in sockets)
MODEL_NODES = tuple(node for node in VCUT_NODES if "Input" in _SOCKETS[node])  # MODEL in and out


class WorkflowError(ValueError):
    """A workflow that cannot be run, in one sentence."""


def load(path: Path) -> dict:
    """Return the workflow or prompt in a file. Raises WorkflowError when it holds neither."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkflowError(f"expected a workflow in {path}, could not read it: {error}.") from None
    if not (is_prompt(workflow) or _is_workflow(workflow)):
        raise WorkflowError(f"expected a workflow in {path}, got other JSON. Export it again.")
    return workflow


def is_prompt(workflow) -> bool:
    """Whether ``workflow`` is in API format already."""
    return (
        isinstance(workflow, dict)
        and bool(workflow)
        and all(
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
            for node in workflow.values()
        )
    )


def _is_workflow(workflow) -> bool:
    return (
        isinstance(workflow, dict)
        and isinstance(workflow.get("links"), list)
        and isinstance(workflow.get("nodes"), list)
        and all(isinstance(node, dict) and "type" in node for node in workflow["nodes"])
    )


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Return the prompt for a workflow, given the node types of the server that will run it.

    Raises WorkflowError when the workflow has a node that the server lacks, or a subgraph, or is
    damaged.
    """
    try:
        return copy.deepcopy(workflow) if is_prompt(workflow) else _convert(workflow, object_info)
    except WorkflowError:
        raise
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise WorkflowError(
            f"expected a workflow as ComfyUI saves it, got a damaged one ({kind}). Export it again."
        ) from error


def _convert(workflow: dict, object_info: dict) -> dict:
    if workflow.get("definitions", {}).get("subgraphs"):
        raise WorkflowError("expected a workflow without subgraphs. Export it in API format.")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    prompt = {}
    for node in nodes.values():
        if node["type"] in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"this ComfyUI has no node {node['type']}. Install its pack first.")
        inputs = _widget_inputs(node, object_info[node["type"]])
        for socket in node.get("inputs") or []:
            source = _source(socket.get("link"), nodes, links)
            if source is not None:
                inputs[socket["name"]] = source
        shown_name = object_info[node["type"]]["display_name"]  # None where it has no other
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or shown_name or node["type"]},
        }
    return prompt


def _widget_inputs(node: dict, info: dict) -> dict:
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    inputs = {}
    _take_widget_values(inputs, iter(values), info["input"])
    return inputs


def _take_widget_values(inputs: dict, values: Iterator, specs: dict, prefix: str = "") -> None:
    """Put the next ``values`` into ``inputs`` in the order of the node's widgets.

    A workflow of an older host may have fewer: the rest takes its defaults, as in the page.
    """
    for kind in ("required", "optional"):
        for name, spec in specs.get(kind, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            is_widget = isinstance(spec[0], list) or spec[0] in WIDGET_DEFAULTS
            if not is_widget or options.get("forceInput"):
                continue
            value = inputs[prefix + name] = next(values, _default(spec[0], options))
            # The frontend stores a second value behind a seed, and one behind an upload button.
            if options.get("control_after_generate") or options.get("image_upload"):
                next(values, None)
            if spec[0] == DYNAMIC_COMBO:  # what is chosen brings widgets of its own
                chosen = {option["key"]: option["inputs"] for option in options["options"]}
                _take_widget_values(inputs, values, chosen.get(value, {}), f"{prefix}{name}.")


def _default(kind: str | list, options: dict):
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options:
        return options["default"]
    if choices:
        return choices[0]["key"] if kind == DYNAMIC_COMBO else choices[0]
    return None if isinstance(kind, list) else WIDGET_DEFAULTS[kind]


def _source(link_id: int | None, nodes: dict, links: dict) -> list | None:
    """Return [node id, output] at the far end of a link, through bypassed and reroute nodes."""
    followed = set()
    while link_id is not None and link_id in links:
        if link_id in followed:
            raise WorkflowError("expected a workflow without loops, found bypassed nodes in one.")
        followed.add(link_id)
        node_id, output = links[link_id]
        node = nodes[node_id]
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") != BYPASSED and node["type"] != "Reroute":
            return [str(node_id), output]
        kind = node["outputs"][output]["type"]
        matching = [s for s in node.get("inputs", []) if s["type"] in (kind, "*")]
        link_id = matching[0].get("link") if matching else None
    return None


def nodes_of(prompt: dict, *class_types: str) -> list[str]:
    """Return the ids of a prompt's nodes of these types."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] in class_types]


def num_steps(prompt: dict) -> int | None:
    """Return the steps of the prompt's first sampler or scheduler, None when they are not known."""
    for node in prompt.values():
        steps = node["inputs"].get("steps")
        if isinstance(steps, int) and not node["class_type"].startswith("VCUT_"):
            return steps
    return None


def replace_loader(prompt: dict, class_type: str) -> None:
    """Load the models with a node that has the same outputs and no inputs.

    VCUT's own loader becomes that node and VCUT Patch SVD Model, which give the same result.
    """
    for node_id in nodes_of(prompt, STOCK_LOADER, PRUNED_LOADER, UNET_LOADER):
        replaced = prompt[node_id]
        prompt[node_id] = {"class_type": class_type, "inputs": {}}
        if replaced["class_type"] == PRUNED_LOADER:
            patch = f"{node_id}_patch"
            reconnect(prompt, [node_id, 0], [patch, 0])
            modes = {"temporal": _input(replaced, "temporal"), "spatial": "cached"}
            inputs = {"model": [node_id, 0], **modes}
            prompt[patch] = {"class_type": "VCUT_PatchSVDModel", "inputs": inputs}


def set_inputs(prompt: dict, class_type: str, **values) -> None:
    """Set inputs that a node type has on every node of that type; None leaves a value alone."""
    for node_id in nodes_of(prompt, class_type):
        inputs = prompt[node_id]["inputs"]
        inputs.update({k: v for k, v in values.items() if v is not None and k in inputs})


def without_vcut(prompt: dict) -> dict:
    """Return the prompt with VCUT's nodes taken out and their links closed up.

    ComfyUI's own nodes take the place of VCUT's loader and decoder.
    """
    prompt = copy.deepcopy(prompt)
    for node_id in nodes_of(prompt, PRUNED_LOADER):
        inputs = {"ckpt_name": _input(prompt[node_id], "ckpt_name")}
        prompt[node_id] = {"class_type": STOCK_LOADER, "inputs": inputs}
    for node_id in nodes_of(prompt, DECODER):
        inputs = {name: _input(prompt[node_id], name) for name in ("samples", "vae")}
        prompt[node_id] = {"class_type": STOCK_DECODER, "inputs": inputs}
    for node_id in nodes_of(prompt, *MODEL_NODES):
        reconnect(prompt, [node_id, 0], _input(prompt.pop(node_id), "model"))
    return prompt


def without_comparison(prompt: dict) -> dict:
    """Return the part of a comparison that makes the video with VCUT; another prompt as it is.

    Raises WorkflowError when no video reaches the comparison.
    """
    for node_id in nodes_of(prompt, COMPARISON):
        sources = [_input(prompt[node_id], name) for name in ("video_b", "video_a")]
        branches = [_upstream(prompt, source[0]) for source in sources if _is_link(source, prompt)]
        if not branches:
            raise WorkflowError(f"expected {COMPARISON} with its video_b, found none.")
        with_vcut = [branch for branch in branches if nodes_of(branch, *VCUT_NODES)]
        return (with_vcut or branches)[0]
    return prompt


def _upstream(prompt: dict, node_id: str) -> dict:
    """Return the part of the prompt that a node needs, the node itself in it."""
    found, waiting = set(), [node_id]
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            inputs = prompt[key]["inputs"].values()
            waiting += [value[0] for value in inputs if _is_link(value, prompt)]
    return {key: node for key, node in prompt.items() if key in found}


def _is_link(value, prompt: dict) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and value[0] in prompt


def _input(node: dict, name: str):
    if name not in node["inputs"]:
        raise WorkflowError(f"expected {node['class_type']} with its {name}, found none.")
    return node["inputs"][name]


def reconnect(prompt: dict, old: list, new: list) -> None:
    """Let every input that comes from ``old`` come from ``new``: [node id, output]."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if value == old:
                node["inputs"][name] = new


def add_counter(prompt: dict) -> None:
    """Put the demo's counter in front of every sampler and guider."""
    guiders = {
        node["inputs"]["guider"][0]
        for node in prompt.values()
        if isinstance(node["inputs"].get("guider"), list)
    }
    for node_id, node in list(prompt.items()):
        is_sampler = "latent_image" in node["inputs"] or node_id in guiders
        if is_sampler and "model" in node["inputs"]:
            counter = f"{node_id}_counter"
            prompt[counter] = {
                "class_type": "VCUT_CountEvaluations",
                "inputs": {"model": node["inputs"]["model"]},
            }
            node["inputs"]["model"] = [counter, 0]


def add_frames_output(prompt: dict, frames: str | None = None) -> str:
    """Save the decoded frames without loss and return the id of the node that does.

    frames: the node they come from; the last decoder by default. Raises WorkflowError when the
    prompt decodes no frames.
    """
    decoders = nodes_of(prompt, STOCK_DECODER, DECODER, "VAEDecodeTiled")
    if not decoders:
        raise WorkflowError("expected a workflow that ends in VAE Decode, found none.")
    prompt["frames"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [frames or decoders[-1], 0], "filename_prefix": "frames"},
    }
    return "frames"
