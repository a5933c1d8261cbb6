"""What is told in the end: a table of the workers, and a page to look through the videos."""

import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from many_gpus.journal import Entry, write_whole

FILE_NAME = "report.html"
VIDEOS = (".mp4", ".webm", ".mov", ".mkv")
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5rem; background: #1b1b1b; color: #ddd; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
video, img {{ width: 100%; background: #000; }}
figcaption, td {{ overflow-wrap: anywhere; }}
small {{ color: #999; }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
{failures}
</html>
"""


def worker_table(entries: Sequence[Entry]) -> str:
    """Return a table of what each worker has done: jobs, seconds, evaluations and those saved."""
    by_worker: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.failure is None:
            by_worker.setdefault(entry.worker, []).append(entry)
    width = max([6, *map(len, by_worker)])
    lines = [f"{'worker':{width}}  videos  seconds  evaluations   saved"]
    for worker, done in sorted(by_worker.items()):
        seconds = sum(entry.seconds for entry in done)
        taken, saved = (
            _sum([getattr(entry, name) for entry in done]) for name in ("evaluations", "saved")
        )
        lines.append(f"{worker:{width}}  {len(done):6}  {seconds:7.1f}  {taken:>11}  {saved:>6}")
    return "\n".join(lines)


def _sum(counts: Sequence[int | None]) -> str:
    known = [count for count in counts if count is not None]
    return str(sum(known)) if known else "-"


def write_page(folder: Path, entries: Sequence[Entry]) -> Path:
    """Write the page with all videos, then all failures, into ``folder``; return its path."""
    done = [entry for entry in entries if entry.failure is None]
    failed = [entry for entry in entries if entry.failure is not None]
    rows = "\n".join(
        f"<tr><td>{html.escape(entry.name)}<td>{html.escape(entry.failure or '')}"
        for entry in failed
    )
    page = PAGE.format(
        title=f"{len(done)} videos" + (f", {len(failed)} failed" if failed else ""),
        figures="\n".join(_figure(entry) for entry in done),
        failures=f"<h2>Failed</h2>\n<table>\n{rows}\n</table>" if failed else "",
    )
    path = folder / FILE_NAME
    write_whole(path, page.encode())
    return path


def _figure(entry: Entry) -> str:
    counts = f"{entry.seconds:.1f} s"
    if entry.evaluations is not None:
        whole = entry.evaluations + (entry.saved or 0)
        counts = f"{entry.evaluations} of {whole} evaluations, {counts}"
    shown = "".join(_shown(file) for file in entry.files)
    caption = f"{html.escape(entry.name)}<br><small>{html.escape(counts)}</small>"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _shown(file: str) -> str:
    source = html.escape(quote(file))
    if file.lower().endswith(VIDEOS):
        return f'<video src="{source}" controls loop muted preload="metadata"></video>'
    return f'<img src="{source}" loading="lazy" alt="">'
