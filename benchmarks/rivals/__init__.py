"""What VCUT is compared with and ComfyUI has no node for: small re-implementations.

Each is a function that takes a ModelPatcher and returns a clone for ONE run. Not for users: they
know nothing of other packs, memory or interrupts.
"""

from .cfg_cache import with_cfg_cache
from .outermost_blocks import with_outermost_blocks

RIVALS = {"OutermostBlocks": with_outermost_blocks, "CFGCache": with_cfg_cache}
