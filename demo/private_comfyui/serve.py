"""A headless ComfyUI with this pack in it: start, queue, follow, fetch results, stop.

Runs inside the environment that ``install.py`` has made.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from private_comfyui.client import ComfyClient, ServerError
from private_comfyui.environments import FOLDER, PACK, HostError
from private_comfyui.install import DEMO, INSIDE, WORKFLOWS, Host

LAUNCHER = FOLDER / "launch.py"
START_DEADLINE_S = 240
# Threads that spin while they wait would stop a busy machine: two torch programs crawl.
SERVER_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "OMP_WAIT_POLICY": "PASSIVE"}

# What an artist's custom_nodes folder holds of the pack: no tests, no environment, no demo.
PACK_FILES = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md")
PACK_FOLDERS = ("nodes", "comfy_adapter", "vcut_core", "plots", "locales", "subgraphs")


class ComfyServer(ComfyClient):
    """A headless ComfyUI with this pack in it, on a free port of this machine.

    All that it writes lies in a folder of its own that goes when it stops.
    """

    def __init__(self, host: Host, port: int | None = None, arguments: tuple[str, ...] = ()):
        self.host = host
        self.port = port or _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.folder = Path(tempfile.mkdtemp(prefix="vcut-comfyui-"))
        self.log = self.folder / "server.log"
        self._arguments = arguments
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "ComfyServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers. Raises HostError with the log's end."""
        self._lay_out()
        command = [
            self.host.python, LAUNCHER, self.host.comfyui / "main.py",
            "--base-directory", self.folder,
            "--extra-model-paths-config", self.folder / "models.yaml",
            "--database-url", "sqlite:///:memory:",
            "--port", self.port,
            "--disable-auto-launch", "--disable-api-nodes",
            *self._arguments,
        ]  # fmt: skip
        ours = (INSIDE, "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        with self.log.open("wb") as log:
            # The launcher ends the server when the other end of its stdin closes, so a server
            # never outlives this process, however this process ends.
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | SERVER_ENVIRONMENT,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            self._require_alive()
            if time.monotonic() > deadline:
                raise self._error(f"ComfyUI did not answer within {START_DEADLINE_S} s")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server, if it runs, and remove its folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty_folders(self) -> None:
        """Remove what prompts have brought and made, which would fill the disk in the end."""
        for name in ("input", "output", "temp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(exist_ok=True)

    def log_text(self) -> str:
        """Return everything that the server has logged."""
        return self.log.read_text(errors="replace")

    def _lay_out(self) -> None:
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        pack = self.folder / "custom_nodes" / "VCUT"
        copy_pack(pack)
        ignore = shutil.ignore_patterns("__pycache__")
        demo = self.folder / "custom_nodes" / "vcut_tiny_svd"
        shutil.copytree(DEMO / "tiny_svd", demo, ignore=ignore)
        entries = {}
        for number, models in enumerate(self.host.models):
            folders = [path.name for path in models.iterdir()] if models.is_dir() else []
            entries[f"models_{number}"] = {"base_path": str(models)} | {
                name: name for name in {"checkpoints", *folders}
            }
        (self.folder / "models.yaml").write_text(json.dumps(entries))  # JSON is YAML

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        # Another program may own the port: believe only our own server's log.
        return f"To see the GUI go to: {self.url}" in self.log_text()

    def _require_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            text = self.log_text()
            if "already in use" in text or "Errno 98" in text or "10048" in text:
                raise HostError(f"port {self.port} is in use. Choose another one.")
            raise self._error("ComfyUI has stopped")
        if "(prompt_worker)" in self.log_text():  # a dead thread's traceback; nothing runs any more
            raise self._error("ComfyUI's queue has stopped")

    def _require_known(self, prompt_id: str) -> None:
        self._require_alive()  # it may be too busy to answer, and nobody else uses it

    def _error(self, what: str) -> ServerError:
        time.sleep(1)  # the log's last lines follow a broken connection
        tail = "\n".join(self.log_text().splitlines()[-20:])
        return ServerError(f"{what}. The end of its log:\n{tail}")


def copy_pack(destination: Path) -> None:
    """Copy into ``destination`` what an artist's custom_nodes folder would hold of the pack."""
    destination.mkdir(parents=True)
    for name in PACK_FILES:
        shutil.copy2(PACK / name, destination / name)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in PACK_FOLDERS:
        shutil.copytree(PACK / name, destination / name, ignore=ignore)
    (destination / "workflows").mkdir()
    for pattern in ("*.json", "*.jpg"):
        for file in WORKFLOWS.glob(pattern):
            shutil.copy2(file, destination / "workflows" / file.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
