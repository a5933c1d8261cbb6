"""A real ComfyUI with the pack in it, and its pages in Debian's chromium."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from comfy_page import chromium, page_of, upload_example_picture
from private_comfyui.environments import PACK
from private_comfyui.install import current_host
from private_comfyui.serve import ComfyServer

BROWSER = Path(__file__).resolve().parent
NEWEST_PAGE = "1.58.1"  # of comfyui-frontend-package, November 2026


def pytest_collection_modifyitems(items):
    """Skip this folder's tests where there is no browser to run them in."""
    if chromium() is not None:
        return
    reason = "needs chromium, not found on PATH: apt-get install chromium"
    for item in items:
        if BROWSER in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def comfyui():
    """The server with its own page, and the picture that the workflows name."""
    host = current_host()
    with ComfyServer(host) as server:
        upload_example_picture(server, host)
        yield server


@pytest.fixture(scope="session")
def comfyui_with_newest_page():
    """The same server with the newest page, from PyPI."""
    host = current_host()
    arguments = ("--front-end-root", str(_newest_page()))
    with ComfyServer(host, arguments=arguments) as server:
        upload_example_picture(server, host)
        yield server


def _newest_page() -> Path:
    folder = PACK / ".venv" / "pages" / NEWEST_PAGE
    if not folder.exists():
        wheels = folder.with_suffix(".wheel")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
        done = subprocess.run([*pip, f"comfyui-frontend-package=={NEWEST_PAGE}"], check=False)
        if done.returncode:
            pytest.skip(f"comfyui-frontend-package {NEWEST_PAGE} could not be fetched")
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
    return folder / "comfyui_frontend_package" / "static"


@pytest.fixture(scope="module", params=["the host's", "the newest"])
def server(request):
    """The server with each of the two pages."""
    name = "comfyui" if request.param == "the host's" else "comfyui_with_newest_page"
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def page_errors() -> list[str]:
    """What has gone wrong in the page, ComfyUI's own complaints left out."""
    return []


# Of the module: in the thread where a page is open no other test can run an event loop.
@pytest.fixture(scope="module")
def open_page(comfyui, page_errors):
    with page_of(comfyui, page_errors) as page:
        assert page_errors == []
        yield page


@pytest.fixture
def page(open_page, page_errors):
    """The page, in which this test must cause no error."""
    yield open_page
    errors = page_errors.copy()
    page_errors.clear()
    assert errors == []


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where screenshots are kept for a person to look at."""
    folder = PACK / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder
