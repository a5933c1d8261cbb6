"""What the Comfy registry reads: fields, pictures, and the address filled in on publishing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """pyproject.toml and README.md as they are published from a repository of some address."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fill_in_address

    for name in fill_in_address.FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(fill_in_address, "ROOT", tmp_path)
    assert fill_in_address.main(["https://example.org/owner/vcut.git/"]) == 0
    return tmp_path


def test_published_metadata_has_what_the_registry_needs(published):
    data = tomllib.loads((published / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = data["project"], data["tool"]["comfy"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"] == "https://example.org/owner/vcut"
    assert comfy["PublisherId"]
    for kind in ("Icon", "Banner"):
        address, _, path = comfy[kind].partition("/raw/main/")
        assert address == project["urls"]["Repository"]
        assert (ROOT / path).is_file()


def _publishing_steps() -> list[dict]:
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["jobs"]["publish"]["steps"]


def test_publishing_keeps_what_was_filled_in():
    (index,) = (k for k, step in enumerate(_publishing_steps()) if "fill_in" in str(step))
    after = _publishing_steps()[index + 1 :]
    assert [step["with"]["skip_checkout"] for step in after] == ["true"]


@pytest.mark.skipif(not (shutil.which("git") and shutil.which("bash")), reason="runs git in bash")
@pytest.mark.parametrize(
    ("line", "is_started_by_hand", "publishes"),
    [
        ('version = "9.0.0"', False, True),
        ('description = "another"', False, False),
        ('description = "another"', True, True),
    ],
)
def test_a_push_publishes_a_new_version_only(tmp_path, line, is_started_by_hand, publishes):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    file, output = tmp_path / "pyproject.toml", tmp_path / "output"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    before = "" if is_started_by_hand else git("rev-parse", "HEAD")
    key = line.partition(" ")[0]
    file.write_text(re.sub(f"(?m)^{key} = .*$", line, text), encoding="utf-8")
    git("commit", "-qam", "second")
    git("commit", "-qm", "third", "--allow-empty")  # pushed together with it
    (command,) = [step["run"] for step in _publishing_steps() if step.get("id") == "version"]
    environment = os.environ | {"BEFORE": before, "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, check=True)
    assert (output.exists() and "changed=true" in output.read_text()) == publishes


def test_nothing_is_left_to_fill_in(published):
    for file in published.iterdir():
        assert "ADDRESS_OF" not in file.read_text(encoding="utf-8"), file.name


def test_an_address_is_asked_for(capsys):
    sys.path.insert(0, str(ROOT / "tools"))
    import fill_in_address

    assert fill_in_address.main(["here"]) == 1
    assert "expected one https:// address" in capsys.readouterr().err


def test_icon_is_square_and_banner_is_21_to_9():
    icon, banner = (Image.open(ROOT / f"docs/registry/{name}.png") for name in ("icon", "banner"))
    assert icon.size == (400, 400)
    assert banner.width / banner.height == pytest.approx(21 / 9, rel=0.01)
