"""Runs ComfyUI's main.py in this process: python launch.py PATH/main.py [arguments].

It makes ComfyUI start where torch has no CUDA, and end when the process that started it has gone.
"""

import os
import runpy
import subprocess
import sys
import threading
import types
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
_declared: list = []  # a torch Library takes its operators with it when it is collected


def make_torchvision_importable() -> None:
    """Declare torchvision's compiled operators where its library does not load.

    A torchvision built with CUDA does not load beside a torch without it, and its import fails on
    ``torchvision::nms``. ComfyUI's video path imports torchvision but calls neither operator.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def has_accelerator() -> bool:
    """Whether torch sees a GPU of any make; without one ComfyUI must be told --cpu."""
    import torch

    return torch.accelerator.is_available() if hasattr(torch, "accelerator") else True


def make_comfyui_importable(comfyui: Path) -> None:
    """Let this process import ComfyUI's own modules, as its main.py would, without a server."""
    sys.path.insert(0, str(comfyui))
    make_torchvision_importable()
    from comfy.cli_args import args

    args.cpu = not has_accelerator()
    # Before ComfyUI's nodes.py puts a second ``utils`` on the path, in front of this one.
    import utils.extra_config  # noqa: F401


def make_pack_importable() -> None:
    """Let this process import the pack as ``vcut``, after ComfyUI's own ``nodes``.

    The pack's root must not be on sys.path: its folder ``nodes`` would hide ComfyUI's nodes.py.
    """
    if "vcut" in sys.modules:
        return
    pack = types.ModuleType("vcut")
    pack.__path__ = [str(PACK)]
    sys.modules["vcut"] = pack


def _end_with_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    os._exit(0)


def main() -> None:
    """Take ComfyUI's main.py from the command line and become it."""
    script = Path(sys.argv[1]).resolve()
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path[0] = str(script.parent)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    # Asked in another process: where there is a GPU, main.py must be the first to import torch.
    question = "from private_comfyui import launch; raise SystemExit(not launch.has_accelerator())"
    if subprocess.run([sys.executable, "-c", question], cwd=PACK / "demo").returncode != 0:
        make_torchvision_importable()
        if "--cpu" not in sys.argv:
            sys.argv.append("--cpu")
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
