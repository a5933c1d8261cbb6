"""demo/batch.py: many jobs on real ComfyUIs, whatever is killed or broken meanwhile."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from many_gpus import engine
from many_gpus.journal import FILE_NAME
from PIL import Image
from private_comfyui import client
from private_comfyui.client import ComfyClient, ServerError
from private_comfyui.environments import PACK, prepare_tools
from private_comfyui.install import INSIDE, current_host

DEADLINE_S = 400
# Not 64x64, of which x264 makes other files now and then: there its macroblock tree reads memory
# that nothing has set.
SMALL = ("--steps", "1", "--frames", "4", "--width", "128", "--height", "128")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of twelve pictures and a text that calls itself one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (64, 64), (20 * number, 255 - 20 * number, 90)).save(
            folder / f"picture {number}.png"
        )
    (folder / "broken.png").write_text("no picture")
    return folder


@pytest.fixture
def start():
    """Return a function that starts demo/batch.py; what is left of it is killed in the end."""
    started = []
    host = current_host()
    options = () if host.extra_site is None else ("--comfyui", host.comfyui)

    def run(*arguments, is_host_told: bool = True) -> subprocess.Popen:
        command = [sys.executable, PACK / "demo" / "batch.py", *arguments]
        command += options if is_host_told else ()
        environment = {k: v for k, v in os.environ.items() if k != INSIDE}
        like_a_terminal = {"start_new_session": True}
        if os.name == "posix":  # a shell lets what it starts in the background ignore Ctrl-C
            like_a_terminal["preexec_fn"] = _heed_ctrl_c
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(
            subprocess.Popen(
                [str(part) for part in command], env=environment, **pipes, **like_a_terminal
            )
        )
        return started[-1]

    yield run
    for process in started:
        for each in _family(process):
            each.kill()
        process.kill()
        process.wait()
        process.stdout.close()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _find(process: subprocess.Popen, sign: str) -> list[psutil.Process]:
    """Return the command's processes whose command line has ``sign`` in it."""
    found = []
    for each in _family(process):
        try:
            found += [each] if sign in " ".join(each.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


def _wait_until(is_true: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _num_done(folder: Path) -> int:
    journal = folder / FILE_NAME
    return journal.read_text().count('"failure": null') if journal.exists() else 0


def _videos(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.mp4")}


def test_sixty_jobs_survive_whatever_is_killed(tmp_path, pictures, start):
    arguments = (pictures, *SMALL, "--seeds", "5", "--output")
    calm = start(*arguments, tmp_path / "calm")
    _wait_until(lambda: _num_done(tmp_path / "calm") >= 1, calm)
    addresses = {
        connection.laddr.ip
        for each in _family(calm)
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses and addresses <= LOOPBACK

    output, _ = calm.communicate(timeout=DEADLINE_S)
    assert calm.returncode == 1, output  # five jobs had a text for a picture
    assert re.search(r"broken-seed0-\w{8}: LoadImage failed: ", output), output
    assert "Traceback" not in output
    expected = _videos(tmp_path / "calm")
    assert len(expected) == 60

    wild_folder = tmp_path / "wild"
    wild = start(*arguments, wild_folder, "--workers", "2")
    for num_done, sign in ((8, "launch.py"), (20, "launch.py"), (32, "ray::ComfyWorker")):
        _wait_until(lambda n=num_done: _num_done(wild_folder) >= n, wild)
        victims = _find(wild, sign)
        # A different server each time, by the order of their processes' ids.
        victims[-1 if num_done == 20 else 0].kill()
    _wait_until(lambda: _num_done(wild_folder) >= 40, wild)
    family = _family(wild)
    wild.kill()
    wild.communicate()
    # Ray's own agents try for up to two minutes to tell the driver that it is dead.
    ours = [each for each in family if "Agent" not in _line(each)]
    assert ours
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert not alive

    again = start(*arguments, wild_folder, "--workers", "2")
    output, _ = again.communicate(timeout=DEADLINE_S)
    assert re.search(r"Videos: 65 videos, [45]\d done before", output), output
    assert _videos(wild_folder) == expected
    assert _num_done(wild_folder) == 60
    assert not list(wild_folder.glob("*.part"))


@pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
def test_ctrl_c_leaves_no_process_and_no_folder_behind(tmp_path, pictures, start):
    process = start(pictures, *SMALL, "--steps", "200", "--output", tmp_path / "videos")
    _wait_until(lambda: _find(process, "launch.py"), process)
    time.sleep(3)
    family = _family(process)
    folders = {part for each in family for part in re.findall(r"/tmp/vcut-ray-\w+", _line(each))}
    assert folders
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "VCUT: stopped. The same command goes on." in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not [folder for folder in folders if Path(folder).exists()]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_servers_that_run_already_are_used(tmp_path, pictures, start, server):
    workflow = tmp_path / "workflow.json"
    workflow.write_text(_prompt_for_tiny_svd())
    process = start(
        *sorted(pictures.glob("picture ?.png")),
        "--workflow", workflow, "--server", server.url, "--output", tmp_path / "videos",
        is_host_told=False,
    )  # fmt: skip
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert len(_videos(tmp_path / "videos")) == 10
    assert server.url in output  # the worker's row


def _prompt_for_tiny_svd() -> str:
    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    prompt = {
        "1": node("VCUT_LoadTinySVD"),
        "2": node("LoadImage", image="x.png"),
        "3": node(
            "SVD_img2vid_Conditioning", clip_vision=["1", 1], init_image=["2", 0], vae=["1", 2],
            width=64, height=64, video_frames=4, motion_bucket_id=127, fps=6,
            augmentation_level=0.0,
        ),
        "4": node(
            "KSampler", model=["1", 0], seed=0, steps=1, cfg=2.5, sampler_name="euler",
            scheduler="karras", positive=["3", 0], negative=["3", 1], latent_image=["3", 2],
            denoise=1.0,
        ),
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": node("CreateVideo", images=["5", 0], fps=6),
        "7": node("SaveVideo", video=["6", 0], filename_prefix="x", format="mp4", codec="h264"),
    }  # fmt: skip
    return json.dumps(prompt)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--server", "http://127.0.0.1:9"), "no ComfyUI answers at http://127.0.0.1:9."),
        (("--server", "ftp://host"), "expected a URL such as http://127.0.0.1:8188"),
        (("--address", "127.0.0.1:9"), "no Ray cluster answers at 127.0.0.1:9: "),
        (("--address", "nowhere"), "expected the address of a Ray cluster, HOST:PORT, got nowhere"),
        (("--checkpoint", "none.ckpt"), "no checkpoint none.ckpt. Choices: none."),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path, pictures, start, options, sentence):
    picture = pictures / "picture 0.png"
    is_own = "--server" not in options
    process = start(picture, *options, "--output", tmp_path, is_host_told=is_own)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert sentence in output
    assert "Traceback" not in output


def test_server_that_hangs_is_told_from_a_slow_one(monkeypatch):
    monkeypatch.setattr(client, "CONNECT_S", 0.5)
    monkeypatch.setattr(client, "ANSWER_S", 0.5)
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        comfyui = ComfyClient(f"http://127.0.0.1:{hung.getsockname()[1]}")
        assert not comfyui.answers()
        with pytest.raises(ServerError, match="ComfyUI does not answer at http"):
            comfyui.run({})


def test_run_that_a_server_has_lost_is_noticed(server):
    comfyui = ComfyClient(server.url)
    with pytest.raises(ServerError, match="ComfyUI has lost the run"):
        comfyui._require_known("an id of before its start")


KILLER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from many_gpus import engine
from many_gpus.dispatch import Dispatch
from many_gpus.jobs import Job, Outcome
from private_comfyui.choices import Choices

class Worker:
    def __init__(self, starts):
        self.starts = starts
    def ready(self):
        if not self.starts:
            raise OSError("it has no GPU")
        return "stub"
    def run(self, job, picture):
        if job.name == "killer":
            os._exit(1)
        if job.name == "bug":
            raise ZeroDivisionError("a bug of ours")
        return Outcome([(".mp4", picture)])

with engine.running(None):
    import ray
    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Worker).options(num_cpus=0)
    jobs = [
        Job(name, Path(sys.argv[2]), 0, {}, Choices()) for name in ("a", "killer", "bug", "b", "c")
    ]
    jobs.append(Job("gone", Path("nowhere.png"), 0, {}, Choices()))
    actors = [actor.remote(True), actor.remote(True), actor.remote(False)]
    for job, outcome, worker in Dispatch(actors, lambda text: print("told:", text)).outcomes(jobs):
        print(f"{job.name}: {outcome.failure or 'done'}")
    try:
        list(Dispatch([actor.remote(False)], print).outcomes(jobs))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_job_that_kills_three_workers_is_set_aside_and_others_are_done(tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"pixels")
    done = subprocess.run(
        [prepare_tools("ray"), "-c", KILLER, PACK / "demo", picture],
        env=os.environ | engine.process_variables(None),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert {name: lines[name] for name in "abc"} == dict.fromkeys("abc", "done"), done
    assert lines["killer"].startswith("set aside, for 3 workers failed with it: ")
    assert "a bug of ours" in lines["bug"]
    assert lines["gone"].startswith("the picture cannot be read: ")
    assert lines["told"] == "one worker less, it does not start: OSError: it has no GPU"
    assert lines["HostError"] == "no worker starts: OSError: it has no GPU"


@pytest.fixture
def two_machines(tmp_path, monkeypatch):
    """The address of a Ray cluster of two nodes on this machine, and the second node's process."""
    ray = prepare_tools("ray").with_name("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    shared = ("--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--disable-usage-stats")
    head = ("--head", "--port", str(port), "--include-dashboard=false")
    nodes: list[subprocess.Popen] = []
    try:
        for options in (head, ("--address", address)):
            log = tmp_path / f"node-{len(nodes)}.log"
            with log.open("w") as file:
                command = [ray, "start", "--block", *options, *shared]
                nodes.append(subprocess.Popen(command, stdout=file, stderr=file))
            deadline = time.monotonic() + 90
            while "Ray runtime started" not in log.read_text():
                assert nodes[-1].poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield address, nodes[1]
    finally:
        for node in reversed(nodes):
            for each in _family(node):
                each.kill()
            node.kill()
            node.wait()


def test_jobs_of_a_machine_that_goes_are_done_by_another(tmp_path, pictures, start, two_machines):
    address, second = two_machines
    process = start(
        *sorted(pictures.glob("picture*")), *SMALL, "--seeds", "2", "--output", tmp_path / "videos",
        "--address", address, "--workers", "2",
    )  # fmt: skip
    _wait_until(lambda: _num_done(tmp_path / "videos") >= 4, process)
    for each in [*_family(second), psutil.Process(second.pid)]:
        each.kill()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert len(_videos(tmp_path / "videos")) == 24
    assert f"Ray of the cluster at {address} listens on its machines' networks." in output
