"""The version check that runs before anything of a too old ComfyUI is imported."""

import sys
import types

import pytest
from private_comfyui.environments import PACK
from private_comfyui.install import MINIMUM_COMFYUI
from vcut.nodes.version_check import MINIMUM_VERSION, outdated_host_message


@pytest.fixture
def host(monkeypatch):
    """Return a function that makes this process look like a ComfyUI of a version."""

    def pretend(version: str | None) -> None:
        module = types.ModuleType("comfyui_version")
        if version is not None:
            module.__version__ = version
        monkeypatch.setitem(sys.modules, "comfyui_version", module)
        comfy_api = types.ModuleType("comfy_api")
        comfy_api.__spec__ = types.SimpleNamespace()  # all that find_spec asks of a loaded module
        monkeypatch.setitem(sys.modules, "comfy_api", comfy_api)

    return pretend


@pytest.mark.parametrize(
    "version", ["0.3.59", "0.3.75", "v0.3.75-2-gabc", "0.9.0rc1", "0.3.59b2", "1.0", "nightly"]
)
def test_host_from_the_floor_on_is_accepted(host, version):
    host(version)
    assert outdated_host_message() is None


@pytest.mark.parametrize(
    ("version", "named"), [("0.3.58", "0.3.58"), ("0.2.99", "0.2.99"), (None, "an older one")]
)
def test_host_below_the_floor_is_told_what_it_needs(host, version, named):
    host(version)
    assert outdated_host_message() == (
        f"VCUT: expected ComfyUI 0.3.59 or newer, got {named}. Update ComfyUI."
    )


def test_floor_is_the_same_wherever_it_is_named():
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    floor = ".".join(map(str, MINIMUM_VERSION))
    assert MINIMUM_COMFYUI == MINIMUM_VERSION
    assert f'requires-comfyui = ">={floor}"' in project
    assert f"needs ComfyUI {floor} or newer" in (PACK / "README.md").read_text(encoding="utf-8")
