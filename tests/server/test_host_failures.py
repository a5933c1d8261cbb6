"""What goes wrong around the private ComfyUI is one sentence, and leaves no process behind."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from private_comfyui import environments, install
from private_comfyui.environments import PACK, HostError
from private_comfyui.install import current_host
from private_comfyui.serve import ComfyServer


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_port_in_use_is_one_sentence():
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        server = ComfyServer(current_host(), port)
        with pytest.raises(HostError, match=f"port {port} is in use"):
            server.__enter__()
    assert not server.folder.exists()


def test_server_that_dies_at_start_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('no such thing as a free lunch')")
    with pytest.raises(HostError, match="(?s)has stopped.*no such thing as a free lunch"):
        ComfyServer(replace(current_host(), comfyui=tmp_path)).__enter__()


def test_server_ends_when_the_process_that_started_it_is_killed():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from private_comfyui.install import current_host\n"
        "host = current_host(); sys.path.append(str(host.extra_site))\n"
        "from private_comfyui.serve import ComfyServer\n"
        "server = ComfyServer(host); server.start()\n"
        "print(server._process.pid, flush=True); input()\n"
    )
    command = [sys.executable, "-c", script, str(PACK / "demo")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert _is_alive(pid)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 20
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_alive(pid)


def test_folder_that_is_no_comfyui_is_named(tmp_path):
    with pytest.raises(HostError, match="a ComfyUI folder with a main.py"):
        install.prepare(tmp_path)


@pytest.mark.parametrize(
    ("version", "named"), [("0.3.52", "got 0.3.52"), (None, "got an older one")]
)
def test_old_comfyui_is_refused_with_the_version_needed(tmp_path, version, named):
    (tmp_path / "main.py").touch()
    if version is not None:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    with pytest.raises(HostError, match=f"0.3.59 or newer, {named}"):
        install.prepare(tmp_path)


@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "PyPI cannot be reached"),
        ("ERROR: No matching distribution found for x", "could not install x: ERROR: No matching"),
    ],
)
def test_failing_pip_is_one_sentence(tmp_path, complaint, sentence):
    pip = tmp_path / "pip.py"
    pip.write_text(f"import sys; sys.stderr.write({complaint!r} + chr(10)); sys.exit(1)")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {pip} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(HostError, match=sentence):
        environments.pip_install(python, "x")


def test_full_disk_is_noticed_before_anything_is_installed(monkeypatch):
    monkeypatch.setattr(install, "FREE_DISK_GB", 10**9)
    with pytest.raises(HostError, match="free disk"):
        environments._require_disk(install.FREE_DISK_GB, "a private ComfyUI", way_out="")


def test_environment_that_is_not_ours_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = somewhere\n")
    monkeypatch.setattr(install, "PACK", tmp_path)
    with pytest.raises(HostError, match="to be VCUT's own, found another environment"):
        install.prepare()
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == ["pyvenv.cfg"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no exec: the outer process waits")
def test_command_becomes_its_inner_process_so_that_signals_reach_it(tmp_path):
    inner = tmp_path / "inner.py"
    inner.write_text("import os; print(os.getpid(), flush=True); input()\n")
    outer = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from private_comfyui import install\n"
        "host = install.Host.from_json(sys.argv[2])\n"
        "install.prepare = lambda comfyui: host\n"
        "install.run_inside(install.Path(sys.argv[3]), [])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != install.INSIDE}
    demo, host = str(PACK / "demo"), current_host().to_json()
    process = subprocess.Popen(
        [sys.executable, "-c", outer, demo, host, str(inner)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.terminate()
    assert process.wait(10) != 0


def test_environment_below_a_name_that_no_pipe_can_write_is_found(monkeypatch, tmp_path):
    folder = tmp_path / "J\u00f6 \u4e2d"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    for name, value in {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)  # as on Windows
    assert folder in install._wheel_folder(environments.python_in(folder)).parents


def test_making_the_environment_again_keeps_our_mark_and_the_checkpoints(tmp_path):
    # An install may be killed at any moment: what is left must still be known as ours.
    for name in ("vcut-private-comfyui", "svd.safetensors"):
        (tmp_path / name).touch()
    environments.make_environment(tmp_path)
    assert (tmp_path / "vcut-private-comfyui").exists()
    assert (tmp_path / "svd.safetensors").exists()
    python = environments.python_in(tmp_path)
    assert subprocess.run([python, "-m", "pip", "--version"]).returncode == 0
