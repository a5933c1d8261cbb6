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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests
import websocket

from private_comfyui.install import DEMO, FOLDER, INSIDE, PACK, WORKFLOWS, Host, HostError

LAUNCHER = FOLDER / "launch.py"
START_DEADLINE_S = 240
# Threads that spin while they wait would stop a busy machine: two torch programs crawl.
SERVER_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "OMP_WAIT_POLICY": "PASSIVE"}

# What an artist's custom_nodes folder holds of the pack: no tests, no environment, no demo.
PACK_FILES = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md")
PACK_FOLDERS = ("nodes", "comfy_adapter", "vcut_core", "plots", "locales", "subgraphs")


@dataclass
class Run:
    """What one queued prompt gave.

    files: outputs by node id. texts: the last text shown on each node. events: messages of other
    kinds, by type. seconds: from queueing to the end.
    """

    files: dict[str, list[dict]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[dict]] = field(default_factory=dict)
    seconds: float = 0.0


class ComfyServer:
    """A headless ComfyUI with this pack in it, on a free port of this machine.

    All that it writes lies in a folder of its own that goes when it stops.
    """

    def __init__(self, host: Host, port: int | None = None, arguments: tuple[str, ...] = ()):
        self.host = host
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
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
        environment = {name: value for name, value in os.environ.items() if name != INSIDE}
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

    def log_text(self) -> str:
        """Return everything that the server has logged."""
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> dict:
        """Return the JSON that the server has at ``path``."""
        return self._request("get", path).json()

    def upload(self, picture: Path) -> str:
        """Upload a picture and return the name to give LoadImage."""
        with picture.open("rb") as file:
            answer = self._request(
                "post",
                "/upload/image",
                files={"image": (picture.name, file)},
                data={"overwrite": "true"},
            )
        return answer.json()["name"]

    def interrupt(self) -> None:
        """Ask the server to stop the prompt that is running."""
        self._request("post", "/interrupt")

    def run(self, prompt: dict, on_progress: Callable[[int, int], None] | None = None) -> Run:
        """Queue a prompt in API format, follow it to its end and return what it gave.

        on_progress: called with (steps done, steps in all) of the sampler.
        Raises HostError naming the node when the server refuses the prompt or a node fails.
        """
        started_at = time.perf_counter()
        run = Run()
        with self._messages() as messages:
            body = {"prompt": prompt, "client_id": self.client_id}
            answer = _json(self._request("post", "/prompt", json=body))
            if "prompt_id" not in answer:
                raise HostError(f"ComfyUI refused the workflow: {_refusal(answer)}")
            self._follow(messages, answer["prompt_id"], run, on_progress)
        run.seconds = time.perf_counter() - started_at
        history = self.get(f"/history/{answer['prompt_id']}")[answer["prompt_id"]]
        for node_id, outputs in history["outputs"].items():
            run.files[node_id] = [
                item
                for items in outputs.values()
                if isinstance(items, list)
                for item in items
                if isinstance(item, dict) and "filename" in item
            ]
        return run

    def fetch(self, file: dict, destination: Path) -> Path:
        """Download one of a run's files to ``destination`` and return that path."""
        names = {name: file[name] for name in ("filename", "subfolder", "type")}
        answer = self._request("get", "/view", params=names)
        answer.raise_for_status()
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(answer.content)
        return destination

    def _request(self, method: str, path: str, **options) -> requests.Response:
        try:
            return requests.request(method, self.url + path, timeout=60, **options)
        except requests.RequestException:
            time.sleep(1)  # the log's last lines follow the broken connection
            raise self._error("ComfyUI does not answer") from None

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

    def _error(self, what: str) -> HostError:
        tail = "\n".join(self.log_text().splitlines()[-20:])
        return HostError(f"{what}. The end of its log:\n{tail}")

    @contextmanager
    def _messages(self) -> Iterator:
        url = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        try:
            connection = websocket.create_connection(url, timeout=2)
        except (websocket.WebSocketException, OSError):
            raise self._error("ComfyUI does not answer") from None
        try:
            yield connection
        finally:
            connection.close()

    def _follow(self, messages, prompt_id: str, run: Run, on_progress) -> None:
        while True:
            try:
                message = messages.recv()
            except websocket.WebSocketTimeoutException:
                self._require_alive()
                continue
            except (websocket.WebSocketException, OSError):
                time.sleep(1)  # the log's last lines follow the broken connection
                raise self._error("ComfyUI broke the connection") from None
            if isinstance(message, bytes):
                _note_text(message, run)
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            if kind == "progress" and on_progress is not None:
                on_progress(data["value"], data["max"])
            elif kind == "execution_error":
                raise HostError(f"{data['node_type']} failed: {data['exception_message'].strip()}")
            elif kind == "execution_interrupted":
                raise HostError("the run was interrupted.")
            elif kind == "executing" and data["node"] is None:
                return  # sent last, when the history holds the outputs
            else:
                run.events.setdefault(kind, []).append(data)


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


def _note_text(message: bytes, run: Run) -> None:
    """Keep the text of a binary progress-text message: type 3, length of the id, id, text."""
    if int.from_bytes(message[:4], "big") != 3:
        return
    length = int.from_bytes(message[4:8], "big")
    node_id, text = message[8 : 8 + length], message[8 + length :]
    run.texts[node_id.decode()] = text.decode()


def _json(answer: requests.Response) -> dict:
    """Return what the server said; of its own failure it sends a page and not JSON."""
    if answer.status_code >= 500:
        return {"error": f"it failed itself (HTTP {answer.status_code})"}
    return answer.json()


def _refusal(answer: dict) -> str:
    """Return the first reasons for which a server refused a prompt."""
    reasons = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(reasons[:3]) or str(answer.get("error", answer))
