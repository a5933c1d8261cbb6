"""The oldest ComfyUI that the pack runs on, checked before anything else of it is imported.

Must not import comfy_api or comfy: on an old host they lack what the pack needs.
"""

import importlib.util
import re

# 0.3.59 is the first to hand transformer_options to attn2.
MINIMUM_VERSION = (0, 3, 59)


def outdated_host_message() -> str | None:
    """Return the sentence for a host that is too old, or None."""
    minimum = ".".join(map(str, MINIMUM_VERSION))
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version, is_old = "an older one", True
    else:  # a version without numbers (nightly) is believed to be new
        is_old = (_numbers(version) or MINIMUM_VERSION) < MINIMUM_VERSION
    if is_old or importlib.util.find_spec("comfy_api") is None:
        return f"VCUT: expected ComfyUI {minimum} or newer, got {version}. Update ComfyUI."
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return "0.3.75", "v0.3.75-2-gabc" or "0.3.75rc1" as (0, 3, 75); () for anything else."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in match.groups()) if match else ()
