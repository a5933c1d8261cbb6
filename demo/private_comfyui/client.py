"""A ComfyUI that runs somewhere: queue prompts on it, follow them, fetch what they made."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests
import websocket

from private_comfyui.environments import HostError

CONNECT_S, ANSWER_S = 10, 60  # how long a server may take


class ServerError(HostError):
    """The server itself has gone or hangs; the prompt may do well on another one."""


@dataclass
class Run:
    """What one queued prompt gave.

    prompt_id: the server's name for it. files: outputs by node id. texts: the last text shown on
    each node. events: messages of other kinds, by type. seconds: from queueing to the end.
    """

    prompt_id: str = ""
    files: dict[str, list[dict]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[dict]] = field(default_factory=dict)
    seconds: float = 0.0


class ComfyClient:
    """A ComfyUI at a URL, such as http://127.0.0.1:8188.

    Every request raises ServerError where the server does not answer.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def answers(self) -> bool:
        """Whether there is a ComfyUI at the URL now."""
        try:
            answer = self._request("get", "/system_stats", answer_s=CONNECT_S)
            return "system" in answer.json()
        except (ServerError, ValueError):  # ValueError: something else than JSON
            return False

    def get(self, path: str) -> dict:
        """Return the JSON that the server has at ``path``."""
        return self._request("get", path).json()

    def upload(self, picture: Path) -> str:
        """Upload a picture and return the name to give LoadImage."""
        return self.upload_bytes(picture.name, picture.read_bytes())

    def upload_bytes(self, name: str, content: bytes) -> str:
        """Upload a picture of this name and return the name to give LoadImage."""
        answer = self._request(
            "post",
            "/upload/image",
            files={"image": (name, content)},
            data={"overwrite": "true"},
        )
        return answer.json()["name"]

    def interrupt(self) -> None:
        """Ask the server to stop the prompt that is running."""
        self._request("post", "/interrupt")

    def run(self, prompt: dict, on_progress: Callable[[int, int], None] | None = None) -> Run:
        """Queue a prompt in API format, follow it to its end and return what it gave.

        on_progress: called with (steps done, steps in all) of the sampler.
        Raises HostError naming the node when the server refuses the prompt or a node fails, and
        ServerError when the server itself goes away.
        """
        started_at = time.perf_counter()
        run = Run()
        with self._messages() as messages:
            body = {"prompt": prompt, "client_id": self.client_id}
            answer = _json(self._request("post", "/prompt", json=body))
            if "prompt_id" not in answer:
                raise HostError(f"ComfyUI refused the workflow: {_refusal(answer)}")
            run.prompt_id = answer["prompt_id"]
            self._follow(messages, run, on_progress)
        run.seconds = time.perf_counter() - started_at
        history = self.get(f"/history/{run.prompt_id}")[run.prompt_id]
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
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(self.fetch_bytes(file))
        return destination

    def fetch_bytes(self, file: dict) -> bytes:
        """Return what one of a run's files holds."""
        names = {name: file[name] for name in ("filename", "subfolder", "type")}
        answer = self._request("get", "/view", params=names)
        answer.raise_for_status()
        return answer.content

    def forget(self, prompt_id: str) -> None:
        """Remove a prompt's entry from the server's history, which would grow without end."""
        self._request("post", "/history", json={"delete": [prompt_id]})

    def _request(
        self, method: str, path: str, answer_s: float | None = None, **options
    ) -> requests.Response:
        timeout = (CONNECT_S, answer_s or ANSWER_S)
        try:
            return requests.request(method, self.url + path, timeout=timeout, **options)
        except requests.RequestException:
            raise self._error("ComfyUI does not answer") from None

    def _require_known(self, prompt_id: str) -> None:
        """Raise ServerError where the server has lost the prompt: it was started anew, say."""
        queued = [entry[1] for entries in self.get("/queue").values() for entry in entries]
        if prompt_id not in queued and not self.get(f"/history/{prompt_id}"):
            raise self._error("ComfyUI has lost the run")

    def _error(self, what: str) -> ServerError:
        return ServerError(f"{what} at {self.url}.")

    @contextmanager
    def _messages(self) -> Iterator:
        url = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        try:
            connection = websocket.create_connection(url, timeout=CONNECT_S)
            connection.settimeout(2)
        except (websocket.WebSocketException, OSError):
            raise self._error("ComfyUI does not answer") from None
        try:
            yield connection
        finally:
            connection.close()

    def _follow(self, messages, run: Run, on_progress) -> None:
        while True:
            try:
                message = messages.recv()
            except websocket.WebSocketTimeoutException:
                self._require_known(run.prompt_id)
                continue
            except (websocket.WebSocketException, OSError):
                raise self._error("ComfyUI broke the connection") from None
            if isinstance(message, bytes):
                _note_text(message, run)
                continue
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id", run.prompt_id) != run.prompt_id:
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
