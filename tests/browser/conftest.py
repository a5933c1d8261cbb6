"""A real ComfyUI with the pack in it, and its page in Debian's chromium."""

from pathlib import Path

import pytest
from comfy_page import chromium, page_of, upload_example_picture
from private_comfyui.install import PACK, current_host
from private_comfyui.serve import ComfyServer

BROWSER = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items):
    """Skip this folder's tests where there is no browser to run them in."""
    if chromium() is not None:
        return
    reason = "needs chromium, not found on PATH: apt-get install chromium"
    for item in items:
        if BROWSER in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def comfyui():
    """The server, with the picture that the workflows name."""
    host = current_host()
    with ComfyServer(host) as server:
        upload_example_picture(server, host)
        yield server


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
