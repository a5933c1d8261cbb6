"""Makes Python environments with pip beside this pack, and runs scripts in them.

Runs on a bare Python: imports nothing outside the standard library.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from private_comfyui.folder_lock import locked

FOLDER = Path(__file__).resolve().parent
PACK = FOLDER.parents[1]
REQUIREMENTS = FOLDER / "requirements"
PYTHON_VERSIONS = ((3, 10), (3, 13))
OURS, COMPLETE, LOCK = "vcut-private-comfyui", "vcut-complete", "vcut-lock"  # in a folder of ours


class HostError(RuntimeError):
    """Something about the private ComfyUI that one sentence tells the user."""


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


def prepare_tools(name: str, disk_gb: int = 1) -> Path:
    """Return the Python of an environment for requirements/NAME.txt alone, ``.venv-NAME``.

    disk_gb: what it takes. Raises HostError when it cannot be made.
    """
    folder, lock = PACK / f".venv-{name}", REQUIREMENTS / f"{name}.txt"
    steps = ((name, ("-r", str(lock))),)
    make_ready(folder, steps, fingerprint([], [lock]), name, disk_gb, way_out="")
    return python_in(folder)


def install_beside(python: Path, requirements: Path, reassurance: str) -> Path:
    """Return a folder with the requirements for an environment that is not ours and stays as it is.

    Raises HostError when pip cannot install them.
    """
    wanted = fingerprint([str(python)], [requirements])
    site = PACK / f".venv-{wanted[:8]}"
    if not (site / COMPLETE).exists():
        site.mkdir(exist_ok=True)
        with locked(site / LOCK, say) as lock:
            if not (site / COMPLETE).exists():  # by the one that was waited for
                say(f"Installing the tools of the demo into {site.name}; {reassurance}")
                target = ("--target", str(site), "--upgrade", "-r", str(requirements))
                pip_install(python, *target, lock=lock)
                (site / COMPLETE).touch()
    return site


def make_ready(
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
    with locked(folder / LOCK, say) as lock:
        if not _is_complete(folder, wanted):  # by the one that was waited for
            say(f"Setting up {what} in {folder.name} (once, some minutes)")
            _install(folder, steps, lock)
            (folder / COMPLETE).write_text(wanted)


def _is_complete(folder: Path, wanted: str) -> bool:
    stamp = folder / COMPLETE
    return stamp.exists() and stamp.read_text() == wanted and python_in(folder).exists()


def _install(folder: Path, steps: Sequence[tuple[str, Sequence[str]]], lock: int | None) -> None:
    """Install each step's packages; what was cut short before is made anew, not believed in."""
    python, unfinished = python_in(folder), folder / "vcut-step-0"
    if unfinished.exists() or run_quietly([python, "-m", "pip", "--version"]) != 0:
        unfinished.touch()
        make_environment(folder)
        unfinished.unlink()
    for number, (what, arguments) in enumerate(steps, 1):
        say(f"{number} of {len(steps)}: {what}")
        unfinished = folder / f"vcut-step-{number}"
        # pip takes a package that was copied in part for a whole one.
        anew = ["--ignore-installed"] if unfinished.exists() else []
        unfinished.touch()
        pip_install(python, *anew, *arguments, lock=lock)
        unfinished.unlink()


def python_in(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(folder: Path) -> None:
    """Make an environment with pip in ``folder``, whatever is left there of an earlier one.

    Raises HostError in one sentence.
    """
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


def pip_install(python: Path, *arguments: str, lock: int | None = None) -> None:
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


def fingerprint(texts: list[str], files: list[Path]) -> str:
    """Return a digest of what an environment is made from."""
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


def run_quietly(command: list) -> int:
    """Return a command's exit code, 1 when it cannot be started; show nothing."""
    try:
        return subprocess.run(command, capture_output=True).returncode
    except OSError:
        return 1


def say(text: str) -> None:
    """Print a line that any terminal can show."""
    encoding = sys.stdout.encoding or "utf-8"  # of a log on Windows, not all that a path can hold
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
