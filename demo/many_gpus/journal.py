"""What has been done so far, kept in the output folder: the videos and one line for each job."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from many_gpus.jobs import Job, Outcome

FILE_NAME = "journal.jsonl"


@dataclass
class Entry:
    """One line of the journal: a job's end. The fields are those of Job and Outcome.

    files: names in the output folder.
    """

    name: str
    picture: str
    seed: int
    files: list[str]
    worker: str
    seconds: float
    evaluations: int | None
    saved: int | None
    failure: str | None


class Journal:
    """The journal of an output folder. Lines are only ever appended."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / FILE_NAME

    def done(self) -> dict[str, Entry]:
        """Return the entries whose files are there, by the job's name."""
        done = {}
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        for line in text.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # cut short by a full disk or a power cut
                continue
            if entry.failure is None and all((self.folder / f).is_file() for f in entry.files):
                done[entry.name] = entry
        return done

    def keep(self, job: Job, outcome: Outcome, worker: str) -> Entry:
        """Write a job's files, each whole or not at all, then its line; return the entry.

        Raises OSError where the disk does not take them.
        """
        files = []
        for number, (suffix, content) in enumerate(outcome.files, 1):
            name = f"{job.name}{suffix}" if number == 1 else f"{job.name}-{number}{suffix}"
            write_whole(self.folder / name, content)
            files.append(name)
        entry = Entry(
            name=job.name,
            picture=str(job.picture),
            seed=job.seed,
            files=files,
            worker=worker,
            seconds=round(outcome.seconds, 3),
            evaluations=outcome.evaluations,
            saved=outcome.saved,
            failure=outcome.failure,
        )
        # A line of its own even behind one that was cut short.
        line = "\n" * self._ends_in_mid_line() + json.dumps(asdict(entry)) + "\n"
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return entry

    def _ends_in_mid_line(self) -> bool:
        if not self._file.exists() or not self._file.stat().st_size:
            return False
        with self._file.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError where the disk does not take it."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
