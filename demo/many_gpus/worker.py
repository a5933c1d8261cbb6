"""A worker: one ComfyUI, and the jobs that it is given. Knows nothing of Ray."""

import hashlib
import socket
import time

from private_comfyui import choices, long_prompts, prompts
from private_comfyui.client import ComfyClient, Run, ServerError
from private_comfyui.environments import HostError
from private_comfyui.install import Host
from private_comfyui.serve import ComfyServer

from many_gpus.jobs import Job, Outcome

# After these a process cannot use its GPU any more: every next job would fail on it.
GPU_IS_LOST = ("CUDA error", "HIP error", "device-side assert")
RESTART_S = 20  # how long a server that others run may take to come back


class ComfyWorker:
    """Does jobs on a ComfyUI: one that it starts from ``host``, or the one at ``url``."""

    def __init__(self, host: Host | None = None, url: str | None = None):
        self._host, self._url = host, url
        self._client: ComfyClient | None = None
        self._object_info: dict = {}

    def ready(self) -> str:
        """Start the ComfyUI, anew where one ran; return the worker's name: machine and device.

        Raises HostError where it does not start or answer.
        """
        self.close()
        client = self._client = self._connect()
        self._object_info = client.get("/object_info")
        devices = client.get("/system_stats")["devices"]
        device = devices[0]["name"] if devices else "no device"
        return self._url or f"{socket.gethostname()}, {device}"

    def _connect(self) -> ComfyClient:
        if self._url is not None:
            client = ComfyClient(self._url)
            deadline = time.monotonic() + RESTART_S
            while not client.answers():
                if time.monotonic() > deadline:
                    raise HostError(f"ComfyUI does not answer at {self._url}.")
                time.sleep(1)
            return client
        host = self._host
        assert host is not None
        if not host.python.exists():
            raise HostError(
                f"{socket.gethostname()} has no {host.python}. Lay out this folder at the same "
                "path there, and run `python3 demo/batch.py --install` in it once."
            )
        server = ComfyServer(host)
        server.__enter__()
        return server

    def close(self) -> None:
        """Stop the ComfyUI, if it is this worker's own."""
        if isinstance(self._client, ComfyServer):
            self._client.stop()
        self._client = None

    def run(self, job: Job, picture: bytes) -> Outcome:
        """Make a job's video of the picture's file; a failure is in the outcome."""
        assert self._client is not None
        try:
            outcome = self._run(self._client, job, picture)
        except ServerError as error:
            outcome = Outcome(failure=str(error), is_lost=True)
        except (HostError, prompts.WorkflowError, OSError) as error:
            is_lost = any(sign in str(error) for sign in GPU_IS_LOST)
            outcome = Outcome(failure=str(error), is_lost=is_lost)
        if isinstance(self._client, ComfyServer):
            self._client.empty_folders()
        return outcome

    def _run(self, client: ComfyClient, job: Job, picture: bytes) -> Outcome:
        # Named after its content: ComfyUI writes the name into the video.
        name = hashlib.sha256(picture).hexdigest()[:16] + job.picture.suffix.lower()
        image = client.upload_bytes(name, picture)
        prompt, frames = choices.to_prompt(
            job.workflow, job.choices, self._object_info, image, job.seed
        )
        if frames is not None:
            prompt = long_prompts.continued(prompt, frames)
        if job.is_counted:
            prompts.add_counter(prompt)
        run = client.run(prompt)
        files = [item for items in run.files.values() for item in items]
        files = [item for item in files if item.get("type") == "output"]
        if not files:
            raise HostError("the workflow saved no file. Let it end in Save Video.")
        contents = [(_suffix(item), client.fetch_bytes(item)) for item in files]
        client.forget(run.prompt_id)
        evaluations, saved = _counts(run)
        return Outcome(contents, run.seconds, evaluations, saved)


def _suffix(item: dict) -> str:
    return "." + item["filename"].rpartition(".")[2]


def _counts(run: Run) -> tuple[int | None, int | None]:
    """Return the UNet evaluations that a run took and saved, None where nobody counted."""
    told = [event["counts"] for event in run.events.get("vcut.run", [])]
    if told:
        taken = sum(counts["unet_evaluations"] for counts in told)
        return taken, sum(counts["evaluations_saved"] for counts in told)
    counted = run.events.get("vcut_demo.run", [])
    return (sum(part["evaluations"] for part in counted), 0) if counted else (None, None)
