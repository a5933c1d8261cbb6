"""README.md is short, its links lead somewhere, and the registry's zip holds what a user needs."""

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
HELP_PAGES = sorted((ROOT / "nodes" / "web" / "docs").glob("*.md"))
TRANSLATIONS = [*(ROOT / "locales").glob("*/*"), *(ROOT / "nodes" / "web" / "docs").glob("*/*")]
MAX_README_BYTES = 9_000
MAX_FILE_BYTES = 1_000_000  # of a file in the zip
SHIPPED = {".jpg", ".json", ".md"}
FOR_DEVELOPERS = {
    ".ci",
    ".comfyignore",
    ".github",
    ".gitignore",
    "benchmarks",
    "demo",
    "tests",
    "tools",
}

INLINE = re.compile(r"\]\(\s*<?([^)\s>]+)")  # [text](target "title") and ![text](target)
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
HTML = re.compile(r"(?:src|href)=[\"']([^\"']+)")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)  # another site or this very page


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _links(page: Path) -> list[str]:
    """Return the relative links and pictures of a page, as paths from the root."""
    text = page.read_text(encoding="utf-8")
    targets = [target for kind in (INLINE, REFERENCE, HTML) for target in kind.findall(text)]
    paths = [target.partition("#")[0] for target in targets if not ADDRESS.match(target)]
    return [normpath(join(dirname(_name(page)), path)) for path in paths]


def _is_ignored(path: str, patterns: list[str]) -> bool:
    """Return whether .comfyignore leaves a file out: folder names and globs, anchored or not."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.strip("/").split("/")
        if pattern.startswith("!") or "**" in wanted:
            raise ValueError(f"expected folder names and globs in .comfyignore, got {pattern}")
        is_anchored = "/" in pattern.rstrip("/")
        last_start = 0 if is_anchored else len(parts) - len(wanted)
        for start in range(last_start + 1):
            stop = start + len(wanted)
            is_file = stop >= len(parts)
            if stop > len(parts) or (pattern.endswith("/") and is_file):
                continue
            if all(map(fnmatchcase, parts[start:stop], wanted)):
                return True
    return False


def _without_ignored(paths: list[str]) -> list[str]:
    """Return what comfy-cli's ``zip_files`` (comfy_cli/file_utils.py) keeps of tracked files."""
    text = (ROOT / ".comfyignore").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    try:
        from pathspec import GitIgnoreSpec
    except ImportError:
        return [path for path in paths if not _is_ignored(path, patterns)]
    ignored = GitIgnoreSpec.from_lines(patterns)
    return [path for path in paths if not ignored.match_file(path)]


@pytest.fixture(scope="module")
def zip_names() -> set[str]:
    """Return the files that ``comfy node pack`` puts into the zip."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    except OSError as error:
        pytest.skip(f"git cannot be run, so the zip's files are unknown: {error}")
    tracked = [path for path in result.stdout.split("\0") if path]
    if result.returncode or not tracked:
        pytest.skip(f"this is no git checkout, so the zip's files are unknown: {result.stderr}")
    return {path for path in _without_ignored(tracked) if (ROOT / path).exists()}


def _is_in_zip(link: str, names: set[str]) -> bool:
    return link in names or any(name.startswith(f"{link}/") for name in names)


def test_the_readme_is_short():
    assert len(README.read_bytes().replace(b"\r\n", b"\n")) <= MAX_README_BYTES


@pytest.mark.parametrize("page", [README, *DOCS], ids=_name)
def test_every_relative_link_leads_to_a_file_in_the_tree(page):
    assert [link for link in _links(page) if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", [README, *DOCS, *HELP_PAGES], ids=_name)
def test_every_relative_link_leads_to_a_file_in_the_zip(page, zip_names):
    assert [link for link in _links(page) if not _is_in_zip(link, zip_names)] == []


def test_the_readme_shows_a_picture_and_links_every_help_page():
    links = _links(README)
    assert "docs/example_output.jpg" in links
    assert {_name(page) for page in HELP_PAGES} <= set(links)


def test_the_zip_holds_the_pages_pictures_and_workflows(zip_names):
    for folder in ("docs", "workflows", "subgraphs"):
        wanted = {_name(path) for path in (ROOT / folder).iterdir() if path.suffix in SHIPPED}
        assert wanted <= zip_names
    assert {_name(page) for page in [README, *HELP_PAGES]} <= zip_names
    assert {_name(page) for page in TRANSLATIONS} <= zip_names


def test_the_zip_holds_nothing_that_is_for_developers(zip_names):
    assert {name.partition("/")[0] for name in zip_names} & FOR_DEVELOPERS == set()


def test_the_zip_holds_no_large_file(zip_names):
    sizes = {name: (ROOT / name).stat().st_size for name in zip_names}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}


@pytest.mark.parametrize(
    ("pattern", "left_out", "kept"),
    [
        ("docs", "nodes/web/docs/a.md", "nodes/docs.py"),  # at any depth, as in .gitignore
        ("/docs/", "docs/a.md", "nodes/web/docs/a.md"),
        ("docs/", "nodes/docs/a.md", "nodes/docs"),
        ("*.png", "docs/a.png", "docs/a.png.md"),
        ("docs/*.png", "docs/a.png", "nodes/docs/a.png"),
    ],
)
def test_a_pattern_leaves_out_what_git_would_ignore(pattern, left_out, kept):
    assert _is_ignored(left_out, [pattern])
    assert not _is_ignored(kept, [pattern])
