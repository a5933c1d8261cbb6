"""Ray: started on this machine or joined, with one actor for each ComfyUI."""

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from private_comfyui.environments import HostError, stop_at_sigterm
from private_comfyui.install import DEMO, Host

OBJECT_STORE_BYTES = 300_000_000  # for pictures and videos on their way
ADDRESS = re.compile(r"(ray://)?([^/:]+):(\d+)")
CONNECT_S = 10
# Our code on a worker's machine, whichever command the job comes from.
WORKER_VARIABLES = {"PYTHONPATH": str(DEMO)}


def process_variables(address: str | None) -> dict[str, str]:
    """Return what has to be in the environment of a process before it imports Ray.

    Without an address Ray does what it does by itself on Windows and on a Mac: it takes 127.0.0.1
    for this machine's address, and listens there only.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0"}
    return variables if address else variables | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def running(address: str | None) -> Iterator[None]:
    """Run the block with Ray: of this machine alone, or of the cluster at ``address``.

    The process has ``process_variables(address)``. Without an address Ray ends with it. Raises
    HostError where nothing answers at the address, or Ray fails while the block runs.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is not None:
        _require_answer(address)
        with _joined(address):
            yield
        return
    # Paths of sockets are short: /tmp, and not a Mac's long folder for temporary files.
    folder = tempfile.mkdtemp(prefix="vcut-ray-", dir="/tmp" if os.name == "posix" else None)
    try:
        import ray

        with _ctrl_c_for_us_alone():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                _system_config={"worker_niceness": 0},  # 15 by itself: no ComfyUI is run like that
                # What a killed worker leaves behind goes with the folder.
                runtime_env={"env_vars": WORKER_VARIABLES | {"TMPDIR": folder, "TEMP": folder}},
            )
        with _ended_in_order():
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_answer(address: str) -> None:
    match = ADDRESS.fullmatch(address)
    if not match:
        raise HostError(f"expected the address of a Ray cluster, HOST:PORT, got {address}.")
    try:
        socket.create_connection((match[2], int(match[3])), CONNECT_S).close()
    except OSError as error:
        raise HostError(
            f"no Ray cluster answers at {address}: {error}. Start one with `ray start --head`."
        ) from None


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": WORKER_VARIABLES},
        )
    except Exception as error:  # Ray has no class of its own for it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HostError(f"could not join the Ray cluster at {address}: {reason}") from None
    with _ended_in_order():
        yield


@contextmanager
def _ctrl_c_for_us_alone() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, though a terminal sends it to all of them.

    They are ended from here: a Ray that goes first would look like one that has failed.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    import ray
    import ray.exceptions

    stop_at_sigterm()  # Ray has taken the signal for itself
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HostError(f"Ray has stopped: {reason} The same command goes on.") from None
    finally:
        ray.shutdown()


def make_actors(
    host: Host | None, servers: list[str], num_workers: int | None, is_cluster: bool
) -> list:
    """Return an actor for each worker: ``ComfyWorker`` as Ray runs it.

    servers: URLs of ComfyUI servers that run already; else each worker starts ``host`` on a GPU of
    its own, or on its share of the CPU cores where Ray sees no GPU. num_workers: None for one on
    this machine, and for one on each GPU of a cluster.
    """
    import ray

    from many_gpus.worker import ComfyWorker

    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(ComfyWorker)
    if servers:
        return [actor.options(num_cpus=0).remote(url=url) for url in servers]
    found = ray.cluster_resources()
    gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    number = num_workers or (max(gpus, 1) if is_cluster else 1)
    if gpus:
        share = {"num_gpus": 1, "num_cpus": 0}
    else:  # Ray sets OMP_NUM_THREADS to it
        share = {"num_cpus": max(cores // number, 1)}
    return [actor.options(**share).remote(host=host) for _ in range(number)]
