"""Samples and measures the videos of the quality benchmark, one thread a process, resumably.

A finished video is a file in the run's folder, so a run that was stopped goes on where it ended.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from quality_tables import BY_NAME, TABLES
from quality_variants import Variant

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TINY_SVD = ROOT / "demo" / "tiny_svd"
FRAMES_IN_BATCH = 64  # first frames that the generator makes at once; the first 64 are the gate's
SEED_STRIDE = 1_000_000  # seed 0 of a frame is the one that the gate samples it with
REFERENCES = {"truth": "truth", "vae": "truth through the VAE"}  # measured, not sampled
MEASURE_SOURCES = (
    BENCH / "quality_measures.py",
    TINY_SVD / "video_truth.py",
    ROOT / "nodes" / "video_comparison.py",
)


@dataclass(frozen=True)
class Run:
    """What all videos of a run share.

    table: its name. folder: for its files. steps: of the sampler, where a variant has none of its
    own.
    """

    table: str
    weights: Path
    folder: Path
    steps: int

    @property
    def records(self) -> Path:
        """The file with a line for each video; another one when the measures' sources change."""
        digest = _digest(source.read_bytes() for source in MEASURE_SOURCES)
        return self.folder / f"measures-{self.table}-{digest}.jsonl"


@dataclass(frozen=True)
class Task:
    """One video. fingerprint: of the variant's settings. seed: counted from 0 for each frame."""

    variant: str
    fingerprint: str
    frame: int
    seed: int

    @classmethod
    def of(cls, variant: str, frame: int, seed: int) -> "Task":
        """Return the video that ``variant`` makes of a first frame."""
        fingerprint = "" if variant in REFERENCES else BY_NAME[variant].fingerprint
        return cls(variant, fingerprint, frame, seed)

    @property
    def noise_seed(self) -> int:
        """The seed that the sampler is given, the same for all variants."""
        return self.frame + SEED_STRIDE * self.seed

    def file(self, run: Run) -> Path:
        """The finished video."""
        folder = run.folder / f"{self.variant}-{self.fingerprint}"
        return folder / f"{self.frame:03d}_{self.seed}.npz"


def finished_records(run: Run) -> dict[Task, dict]:
    """Return what earlier runs measured, and leave only whole lines in their file."""
    if not run.records.exists():
        return {}
    records = {}
    for line in run.records.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # stopped while it wrote this line
            continue
        records[Task(**record["task"])] = record
    partial = run.records.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    os.replace(partial, run.records)
    return records


def finish_all(run: Run, tasks: list[Task], jobs: int) -> Iterator[dict]:
    """Yield the record of each task when it is finished, and append it to the run's file.

    References come before what is measured against them.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    phases = [[task for task in tasks if _depth(task.variant) == depth] for depth in range(3)]
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # for the workers' torch
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)
    try:
        with run.records.open("a") as file:
            for phase in phases:
                for future in as_completed([pool.submit(finish, run, task) for task in phase]):
                    record = future.result()
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    yield record
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _depth(name: str) -> int:
    """Return how many references lie between a variant and its baseline."""
    if name in REFERENCES or BY_NAME[name].reference == name:
        return 0
    return 1 + _depth(BY_NAME[name].reference)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which lets a video be finished; end when the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def finish(run: Run, task: Task) -> dict:
    """Return the record of one video, which is sampled first unless its file is there."""
    sampler = _sampler(run)
    truth = true_video(task.frame)
    if task.variant in REFERENCES:
        video = sampler.reference(task.variant, truth)
        return {"task": asdict(task), "values": sampler.measure(video, truth)}
    if not task.file(run).exists():
        write_video(task.file(run), *sampler.sample(task, truth))
    video, facts = read_video(task.file(run))
    variant = BY_NAME[task.variant]
    reference, _ = read_video(Task.of(variant.reference, task.frame, task.seed).file(run))
    values = sampler.measures.distance_to_baseline(reference, video)
    if variant.test == "ordinary":
        values |= sampler.measure(video, truth)
    return {"task": asdict(task), "facts": facts, "values": values}


def true_video(frame: int):
    """Return the true continuation of an unseen first frame, counted from 0: Videos, B = 1."""
    return _true_batch(frame // FRAMES_IN_BATCH).only(frame % FRAMES_IN_BATCH)


@lru_cache(maxsize=2)
def _true_batch(batch: int):
    from video_truth import UNSEEN_SEED
    from video_world import make_videos

    return make_videos(FRAMES_IN_BATCH, UNSEEN_SEED + batch, unseen=True)


def write_video(file: Path, video, facts: dict) -> None:
    """Write a video (T, H, W, 3), uint16, whole or not at all."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial.npz")
    np.savez_compressed(partial, video=video, facts=json.dumps(facts))
    os.replace(partial, file)


def read_video(file: Path):
    """Return (video, facts) as ``write_video`` was given them."""
    import numpy as np

    with np.load(file) as content:
        return content["video"], json.loads(str(content["facts"]))


@cache
def _sampler(run: Run) -> "Sampler":
    """Load everything at a worker's first video, so that an error reaches the parent."""
    from private_comfyui.install import current_host
    from private_comfyui.launch import make_comfyui_importable, make_pack_importable

    make_comfyui_importable(current_host().comfyui)
    import nodes  # noqa: F401  ComfyUI's, before the pack's folder of that name

    make_pack_importable()
    logging.getLogger().setLevel(logging.ERROR)
    return Sampler(run)


class Sampler:
    """The tiny SVD in this process and its variants. Raises RuntimeError for bad weights."""

    def __init__(self, run: Run) -> None:
        import comfy.utils
        import cv2
        import quality_measures
        import torch
        from tiny_svd_jobs import TinySVD
        from vcut.comfy_adapter.cost_reading import build_on_meta, measure_on_meta
        from video_world import NUM_FRAMES, SIZE

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        comfy.utils.set_progress_bar_enabled(False)
        self.run, self.measures, self.tiny = run, quality_measures, TinySVD(run.weights)
        unet = build_on_meta(self.tiny.model.model.model_config.unet_config)
        # Convolutions and linear layers, as WorkMeter counts them.
        self.evaluation_macs = measure_on_meta(unet, SIZE, SIZE, NUM_FRAMES).macs("CL")
        self.pack_sources = _pack_sources()

    def reference(self, name: str, truth):
        """Return the true video (T, H, W, 3), uint16, as it is or as the VAE decodes it."""
        from evaluate import through_vae

        frames = truth.frames[0]
        return self.measures.to_uint16(
            frames if name == "truth" else through_vae(self.tiny.vae, frames)
        )

    def measure(self, video, truth) -> dict[str, float]:
        """Return what the run's table shows of a video beside its distance to the baseline."""
        values = self.measures.distance_to_truth(video, truth)
        return values | (
            self.measures.stand_ins(video, truth) if TABLES[self.run.table].stand_ins else {}
        )

    def sample(self, task: Task, truth) -> tuple:
        """Return the video (T, H, W, 3), uint16, and facts about its making."""
        import torch
        from tiny_svd.demo_nodes import watch_evaluations
        from work_meter import WorkMeter

        variant = BY_NAME[task.variant]
        sampler, job = self._job(variant, truth, task.noise_seed)
        model = self.tiny.guided(patched(self.tiny.nodes, self.tiny.model, variant))
        unet = self.tiny.model.model.diffusion_model
        evaluations = []
        started = time.perf_counter()
        with torch.inference_mode():
            with watch_evaluations(unet, evaluations.extend), WorkMeter(unet) as meter:
                latent = sampler(self.tiny.nodes, model, job)
            frames = self.tiny.decode(latent)
        facts = {
            "evaluations": len(evaluations),
            "work": round(meter.macs / self.evaluation_macs, 2),
            "elapsed_s": round(time.perf_counter() - started, 2),
            "pack_sources": self.pack_sources,
        }
        return self.measures.to_uint16(frames), facts

    def _job(self, variant: Variant, truth, seed: int) -> tuple:
        """Return the sampler that a variant runs, and its job."""
        from sampling_jobs import align_your_steps, one_sampler

        job = self.tiny.job(truth, seed, variant.steps or self.run.steps)
        if variant.test == "stress":
            job = replace(job, positive=job.negative, cfg=1.0)
        return align_your_steps if variant.schedule == "align_your_steps" else one_sampler, job


def patched(nodes, model, variant: Variant):
    """Return a clone of ``model`` through the variant's nodes, ComfyUI's, ours and rivals."""
    from rivals import RIVALS

    for node_id, inputs in variant.nodes:
        rival = RIVALS.get(node_id)
        model = rival(model, **inputs) if rival else nodes.patch(node_id, model, **inputs)
    return model


def _pack_sources() -> str:
    """Return a digest of the pack's method and adapter as they were imported."""
    parts = ("vcut.vcut_core.", "vcut.comfy_adapter")
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith(parts)]
    return _digest(Path(module.__file__).read_bytes() for module in modules)


def _digest(contents) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]
