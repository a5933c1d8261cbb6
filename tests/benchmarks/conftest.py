"""The fixtures of a real ComfyUI in this process."""

from vcut.tests.support.comfyui_fixtures import *  # noqa: F403
