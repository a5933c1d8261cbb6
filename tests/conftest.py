"""Makes the pack importable as ``vcut``, the name under which every test reads it."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
FOLDERS = ("demo", "demo/tiny_svd", "benchmarks", "tools")
sys.path[:0] = [str(TESTS.parent / folder) for folder in FOLDERS]

from private_comfyui.launch import make_pack_importable  # noqa: E402

make_pack_importable()


def pytest_configure(config):
    """Drop what ComfyUI said while it was imported: it would follow pytest's closing line."""
    config.pluginmanager.getplugin("capturemanager").read_global_capture()
