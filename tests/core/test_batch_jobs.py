"""Jobs of demo/batch.py, its journal and its page: what is the same job, and what is done."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from many_gpus import jobs as batch_jobs
from many_gpus import report
from many_gpus.jobs import Job, Outcome, find_pictures, make_jobs
from many_gpus.journal import FILE_NAME, Entry, Journal
from private_comfyui.choices import Choices
from private_comfyui.environments import HostError

WORKFLOW = {"1": {"class_type": "KSampler", "inputs": {"steps": 25}}}
AS_IT_IS = Choices()


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "more/c.webp"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "pictures"


def _names(paths) -> list[str]:
    return [path.name for path in paths]


def _jobs(pictures, seeds=(0,), workflow=WORKFLOW, choices=AS_IT_IS) -> list[Job]:
    return make_jobs(find_pictures([str(pictures)]), seeds, workflow, choices)[0]


def test_folders_files_and_globs_name_pictures_once(pictures):
    file = pictures / "notes.txt"  # named by itself it is believed
    found = find_pictures([str(pictures), str(file), str(pictures / "**" / "*"), str(pictures)])
    assert _names(found) == ["a.JPG", "b.png", "notes.txt", "c.webp"]


@pytest.mark.parametrize("pattern", ["nothing", "*.tiff", "more/nothing/*"])
def test_pattern_that_names_no_picture_is_refused(pictures, pattern):
    with pytest.raises(HostError, match="expected pictures, found none at "):
        find_pictures([str(pictures / pattern)])


def test_name_stands_for_all_that_a_video_depends_on(pictures):
    before = {job.name for job in _jobs(pictures, seeds=(0, 1))}
    assert len(before) == 4
    assert all(re.fullmatch(r"[ab]-seed[01]-[0-9a-f]{8}", name) for name in before)
    assert {job.name for job in _jobs(pictures, seeds=(1, 0))} == before
    other = {"1": {"class_type": "KSampler", "inputs": {"steps": 24}}}
    changed = [
        _jobs(pictures, seeds=(2,)),
        _jobs(pictures, workflow=other),
        _jobs(pictures, choices=Choices(steps=3)),
        make_jobs([pictures / "b.png"], [0], WORKFLOW, AS_IT_IS, is_counted=True)[0],
    ]
    (pictures / "a.JPG").write_bytes(b"another")
    changed.append([job for job in _jobs(pictures) if job.picture.name == "a.JPG"])
    names = [job.name for jobs in changed for job in jobs]
    assert not before & {*names} and len({*names}) == len(names)


def test_equal_pictures_of_one_name_are_one_job(pictures):
    (pictures / "more" / "b.png").write_bytes(b"b.png")
    (pictures / "more" / "same.png").write_bytes(b"b.png")
    found = find_pictures([str(pictures / "b.png"), str(pictures / "more")])
    jobs, _ = make_jobs(found, [0], WORKFLOW, Choices())
    assert _names(job.picture for job in jobs) == ["b.png", "c.webp", "same.png"]


def test_picture_that_cannot_be_read_costs_nobody_else(pictures):
    found = [*find_pictures([str(pictures)]), pictures / "gone.png"]
    jobs, unreadable = make_jobs(found, [0], WORKFLOW, Choices())
    assert len(jobs) == 2
    assert _names(unreadable) == ["gone.png"]
    assert "No such file" in unreadable[pictures / "gone.png"]


def test_long_names_are_cut(pictures):
    (pictures / f"{'x' * 200}.png").touch()
    assert max(len(job.name) for job in _jobs(pictures)) < batch_jobs.LONGEST_STEM + 40
    (pictures / f"{chr(0x1F3A5) * 60}.png").touch()  # four bytes each; Linux allows 255 for a name
    names = [job.name for job in _jobs(pictures, seeds=(2**64 - 1,))]
    assert max(len(f"{name}-12.mp4.part".encode()) for name in names) < 255


def test_job_is_done_when_its_line_and_all_its_files_are_there(pictures, tmp_path):
    first, second = _jobs(pictures)
    journal = Journal(tmp_path)
    outcome = Outcome([(".mp4", b"video"), (".png", b"sheet")], 1.5, 21, 29)
    entry = journal.keep(first, outcome, "worker")
    journal.keep(second, Outcome(failure="no memory"), "worker")
    assert entry.files == [f"{first.name}.mp4", f"{first.name}-2.png"]
    assert (tmp_path / entry.files[1]).read_bytes() == b"sheet"
    assert Journal(tmp_path).done() == {first.name: entry}
    (tmp_path / entry.files[1]).unlink()
    assert Journal(tmp_path).done() == {}


def test_line_that_was_cut_short_costs_its_own_job_alone(pictures, tmp_path):
    first, second = _jobs(pictures)
    journal = Journal(tmp_path)
    journal.keep(first, Outcome([(".mp4", b"1")]), "worker")
    file = tmp_path / FILE_NAME
    file.write_text(file.read_text() + file.read_text()[:40])
    journal.keep(second, Outcome([(".mp4", b"2")]), "worker")
    assert [*Journal(tmp_path).done()] == [first.name, second.name]
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.skipif(os.name != "posix", reason="a limit of POSIX stands for a full disk")
def test_video_that_the_disk_does_not_take_leaves_nothing(pictures, tmp_path):
    import resource

    first, second = _jobs(pictures)
    journal = Journal(tmp_path)
    journal.keep(first, Outcome([(".mp4", b"small")]), "worker")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match="large"):
            journal.keep(second, Outcome([(".mp4", b"x" * 20_000)]), "worker")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        f"{first.name}.mp4",
        FILE_NAME,
    ]
    assert [*journal.done()] == [first.name]


def _entry(**changes) -> Entry:
    entry = Entry("a-seed0-1", "a.png", 0, ["a <1>.mp4"], "gpu 0", 2.0, 21, 29, None)
    return replace(entry, **changes)


def test_table_adds_up_what_each_worker_did():
    entries = [
        _entry(),
        _entry(seconds=3.5),
        _entry(worker="gpu 1", evaluations=None, saved=None),
        _entry(failure="no memory"),
    ]
    rows = [line.split() for line in report.worker_table(entries).splitlines()]
    assert rows == [
        ["worker", "videos", "seconds", "evaluations", "saved"],
        ["gpu", "0", "2", "5.5", "42", "58"],
        ["gpu", "1", "1", "2.0", "-", "-"],
    ]


def test_page_shows_videos_pictures_and_failures(tmp_path):
    failed = _entry(name="b-seed0-2", files=[], failure="<no> memory")
    page = report.write_page(tmp_path, [_entry(), _entry(files=["x.webp"]), failed])
    text = page.read_text(encoding="utf-8")
    assert "2 videos, 1 failed" in text
    assert '<video src="a%20%3C1%3E.mp4"' in text and '<img src="x.webp"' in text
    assert "21 of 50 evaluations, 2.0 s" in text
    assert "&lt;no&gt; memory" in text and "<no>" not in text


def test_journal_is_lines_of_json(pictures, tmp_path):
    (first, _) = _jobs(pictures)
    Journal(tmp_path).keep(first, Outcome([(".mp4", b"1")], 1.23456), "worker")
    (line,) = (tmp_path / FILE_NAME).read_text().splitlines()
    assert json.loads(line)["seconds"] == 1.235
