"""ComfyUI in this process, its nodes called by id as a graph calls them.

ComfyUI is made importable by ``start_comfyui`` or by a test.
"""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

from private_comfyui.install import current_host
from private_comfyui.launch import make_comfyui_importable, make_pack_importable

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = (  # of ComfyUI; an older host lacks some
    "nodes_video_model.py",
    "nodes_custom_sampler.py",
    "nodes_align_your_steps.py",
    "nodes_easycache.py",
    "nodes_context_windows.py",
    "nodes_perpneg.py",
    "nodes_torch_compile.py",
)


class BenchError(RuntimeError):
    """Something that one sentence tells the user."""


def start_comfyui(device: str) -> None:
    """Let this process import ComfyUI and the pack (as ``vcut``), on ``device`` (cpu or cuda)."""
    make_comfyui_importable(current_host().comfyui)
    from comfy.cli_args import args

    args.cpu = args.cpu or device == "cpu"  # before comfy.model_management looks for a GPU
    import nodes  # noqa: F401  ComfyUI's, before the pack's folder of that name

    make_pack_importable()


class HostNodes:
    """The nodes of ComfyUI and of this pack, by their ids."""

    def __init__(self) -> None:
        from vcut.nodes.extension import VCUTExtension

        import nodes as comfy_nodes

        self._comfy_nodes = comfy_nodes
        extras = Path(comfy_nodes.__file__).parent / "comfy_extras"
        for name in EXTRAS:
            if (extras / name).exists():
                self._load(extras / name, "comfy_extras")
        pack = asyncio.run(VCUTExtension().get_node_list())
        self._own = {node.GET_SCHEMA().node_id: node for node in pack}

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._own or node_id in self._comfy_nodes.NODE_CLASS_MAPPINGS

    def add_pack(self, folder: Path) -> list[str]:
        """Load another pack as ComfyUI does at its start; return the ids of its nodes.

        Raises BenchError when it cannot be loaded.
        """
        known = set(self._comfy_nodes.NODE_CLASS_MAPPINGS)
        if not folder.exists() or not self._load(folder.resolve(), "custom_nodes"):
            raise BenchError(
                f"expected a node pack for ComfyUI, could not load {folder.name}. "
                "Give --extra-pack the pack's folder, with what it needs installed."
            )
        return sorted(set(self._comfy_nodes.NODE_CLASS_MAPPINGS) - known)

    def _load(self, path: Path, parent: str) -> bool:
        loading = self._comfy_nodes.load_custom_node(str(path), module_parent=parent)
        return asyncio.run(loading)

    def call(self, node_id: str, **inputs) -> tuple:
        """Return the outputs of a node; inputs not named take the node's own defaults."""
        node = self._class(node_id)
        inputs = self._defaults(node) | inputs
        if hasattr(node, "define_schema"):
            output = node.execute(**inputs)
        else:
            output = getattr(node(), node.FUNCTION)(**inputs)
        if inspect.iscoroutine(output):
            output = asyncio.run(output)
        if isinstance(output, dict):
            output = output["result"]
        return tuple(getattr(output, "args", output))

    def patch(self, node_id: str, model, **inputs):
        """Return what a node that takes and gives a MODEL makes of ``model``."""
        return self.call(node_id, **{self._model_input(node_id): model}, **inputs)[0]

    def inputs_of(self, node_id: str) -> dict[str, tuple]:
        """Return the inputs of a node: name -> (type, options)."""
        return _specifications(self._class(node_id))

    def convert(self, node_id: str, texts: list[str]) -> dict[str, Any]:
        """Return inputs given as ["name=value"], read as JSON where they can be.

        Raises BenchError for one that the node has not.
        """
        known = self.inputs_of(node_id)
        inputs = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise BenchError(
                    f"expected an input of {node_id} ({', '.join(known)}), got {name}. "
                    "Change --extra-input."
                )
            try:
                inputs[name] = json.loads(value)
            except ValueError:
                inputs[name] = value
        return inputs

    def _class(self, node_id: str):
        if node_id not in self:
            raise BenchError(f"expected a node that this ComfyUI has, got {node_id}.")
        return self._own.get(node_id) or self._comfy_nodes.NODE_CLASS_MAPPINGS[node_id]

    def _defaults(self, node) -> dict[str, Any]:
        defaults = {}
        for name, (kind, *rest) in _specifications(node).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list | tuple) else options.get("options")
            if "default" in options:
                defaults[name] = options["default"]
            elif choices:
                defaults[name] = choices[0]
        return defaults

    def _model_input(self, node_id: str) -> str:
        for name, (kind, *_) in self.inputs_of(node_id).items():
            if kind == "MODEL":
                return name
        raise BenchError(f"expected a node with a MODEL input, got {node_id}. Change --extra-node.")


def _specifications(node) -> dict[str, tuple]:
    """Return the inputs of a node's class, old style or new: name -> (type, options)."""
    types_ = node.INPUT_TYPES()
    return {**types_.get("required", {}), **types_.get("optional", {})}
