"""Jobs: one video each, of a picture, a seed and a workflow."""

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from private_comfyui.choices import Choices
from private_comfyui.environments import HostError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LONGEST_STEM = 40  # characters kept of a picture's name: a file's has 255 bytes at most


@dataclass(frozen=True)
class Job:
    """One video to make.

    name: of its files, without suffix. It ends in a digest of all that the video depends on, so
    that a name stands for one video. is_counted: UNet evaluations are counted without VCUT too;
    needs the demo's own nodes.
    """

    name: str
    picture: Path
    seed: int
    workflow: dict
    choices: Choices
    is_counted: bool = False


@dataclass
class Outcome:
    """What became of a job.

    files: (suffix, content) of each. seconds: from queueing to the end. evaluations, saved: of the
    UNet, None where VCUT had no part. failure: why there is no video. is_lost: the worker is to
    blame, not the job, as far as one can tell.
    """

    files: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    evaluations: int | None = None
    saved: int | None = None
    failure: str | None = None
    is_lost: bool = False


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """Return the pictures that files, folders and globs name, each once, in order.

    Raises HostError for one that names none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if _is_picture(file)]
        elif path.is_file():
            files = [path]
        else:  # a shell on Windows leaves globs to us
            names = sorted(glob.glob(pattern, recursive=True))
            files = [Path(name) for name in names if _is_picture(Path(name))]
        if not files:
            raise HostError(f"expected pictures, found none at {pattern}.")
        found |= dict.fromkeys(files)
    return list(found)


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES


def make_jobs(
    pictures: Sequence[Path],
    seeds: Sequence[int],
    workflow: dict,
    choices: Choices,
    is_counted: bool = False,
) -> tuple[list[Job], dict[Path, str]]:
    """Return a job for each picture and seed, and why some pictures cannot be read.

    Equal pictures of one name in two folders are one job. is_counted: see Job.
    """
    jobs: dict[str, Job] = {}
    unreadable = {}
    settings = json.dumps([workflow, asdict(choices), is_counted], sort_keys=True).encode()
    for picture in pictures:
        try:
            of_picture = hashlib.sha256(settings + picture.read_bytes())
        except OSError as error:
            unreadable[picture] = f"it cannot be read: {error.strerror or error}"
            continue
        for seed in seeds:
            digest = of_picture.copy()
            digest.update(str(seed).encode())
            name = f"{picture.stem[:LONGEST_STEM]}-seed{seed}-{digest.hexdigest()[:8]}"
            jobs[name] = Job(name, picture, seed, workflow, choices, is_counted)
    return list(jobs.values()), unreadable
