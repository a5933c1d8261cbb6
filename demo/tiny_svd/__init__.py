"""A loader node for the tiny SVD, for the demo and the tests; no part of the pack.

Linked into the private ComfyUI as a pack of its own, so artists never see it.
"""

from .demo_nodes import TinySVDExtension


async def comfy_entrypoint() -> TinySVDExtension:
    """Called by ComfyUI once, when it loads this package."""
    return TinySVDExtension()
