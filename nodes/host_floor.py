"""The oldest ComfyUI that the pack runs on, checked before anything else of it is imported.

Must not import comfy_api or comfy: on an old host they lack what the pack needs.
"""

import importlib.util

# 0.3.59 is the first to hand transformer_options to attn2.
MINIMUM_VERSION = (0, 3, 59)


def outdated_host_message() -> str | None:
    """Return the sentence for a host that is too old, or None."""
    minimum = ".".join(map(str, MINIMUM_VERSION))
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = "an older one"
    if importlib.util.find_spec("comfy_api") is None or _numbers(version) < MINIMUM_VERSION:
        return f"VCUT: expected ComfyUI {minimum} or newer, got {version}. Update ComfyUI."
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return "0.3.75" or "v0.3.75-2-gabc" as (0, 3, 75); () for anything else."""
    parts = version.lstrip("v").split("-")[0].split("+")[0].split(".")[:3]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
