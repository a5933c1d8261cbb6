"""VCUT for ComfyUI: faster and lighter Stable Video Diffusion, without training."""

import logging

from .nodes.version_check import outdated_host_message

WEB_DIRECTORY = "./nodes/web"

if _message := outdated_host_message():
    logging.getLogger(__name__).error(_message)
    NODE_CLASS_MAPPINGS = {}  # so that an old host goes on without a complaint of its own
else:
    from .comfy_adapter import listen_to_pages
    from .nodes.extension import VCUTExtension

    async def comfy_entrypoint() -> VCUTExtension:
        """Called by ComfyUI once, when it loads the pack."""
        listen_to_pages()
        return VCUTExtension()
