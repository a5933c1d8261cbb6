"""The installation of the private ComfyUI: cut short, begun again, begun twice."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import psutil
import pytest
from private_comfyui import environments, install
from private_comfyui.install import DEMO

PACKAGE = {
    "first.py": "",
    "second.py": "",
    "parts-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: parts\nVersion: 1\n",
    "parts-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "parts-1.dist-info/RECORD": "first.py,,\nsecond.py,,\n",
}
HOLD = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from private_comfyui.folder_lock import locked
with locked(Path(sys.argv[2]), lambda text: print(text, flush=True)):
    print("has it", flush=True)
    input()
"""
PIP = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a CI's shell ignores it
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from private_comfyui import environments, install
try:
    install.run_inside(Path(), [], Path("nowhere"))
except environments.HostError:
    pass
try:
    environments.pip_install(Path(sys.argv[2]), "x")
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.fixture
def start():
    """Return a function that starts a script; what is left of it is killed in the end."""
    started = []
    environment = {k: v for k, v in os.environ.items() if k != install.INSIDE}

    def run(script: str, *arguments) -> subprocess.Popen:
        command = [sys.executable, "-c", script, str(DEMO), *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_package_that_was_copied_in_part_is_copied_again(tmp_path, capsys):
    wheel, folder = tmp_path / "parts-1-py3-none-any.whl", tmp_path / "environment"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in PACKAGE.items():
            archive.writestr(name, text)
    steps = [("parts", ("--no-index", str(wheel)))]
    environments.make_environment(folder)
    environments._install(folder, steps, lock=None)
    site = install._wheel_folder(environments.python_in(folder)).parents[1]
    (site / "second.py").unlink()
    environments._install(folder, steps, lock=None)
    assert not (site / "second.py").exists()  # pip takes it for installed
    (folder / "vcut-step-1").touch()  # the mark of a step that was killed
    environments._install(folder, steps, lock=None)
    assert (site / "second.py").exists()
    assert not list(folder.glob("vcut-step-*"))
    assert "1 of 1: parts" in capsys.readouterr().out


def test_environment_that_was_made_in_part_is_made_again(tmp_path):
    environments.make_environment(tmp_path)
    (tmp_path / "models").mkdir()
    package = install._wheel_folder(environments.python_in(tmp_path)).parents[1] / "pip"
    (package / "_internal" / "exceptions.py").unlink()
    (tmp_path / "vcut-step-0").touch()
    environments._install(tmp_path, [], lock=None)
    assert (package / "_internal" / "exceptions.py").exists()
    assert (tmp_path / "models").exists() and not (tmp_path / "vcut-step-0").exists()


def test_second_command_waits_and_goes_on_when_the_first_is_killed(tmp_path, start):
    first = start(HOLD, tmp_path / "lock")
    assert first.stdout.readline() == "has it\n"
    second = start(HOLD, tmp_path / "lock")
    waits = f"Waiting for another command that works in {tmp_path.name}\n"
    assert second.stdout.readline() == waits
    time.sleep(0.3)
    assert second.poll() is None
    first.kill()
    assert second.stdout.readline() == "has it\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pip_ends_with_the_command(tmp_path, start, number):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    process = start(PIP, python)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    time.sleep(0.5)  # until the command waits for it
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == "stopped\n"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
