"""What the Comfy registry reads: fields, pictures, and the address filled in on publishing."""

import re
import sys
from pathlib import Path

import pytest
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
