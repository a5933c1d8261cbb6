"""What a results file says of the machine it was made on."""

import datetime
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        match = re.search(r"model name\s*: (.+)", listing.read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def circumstances(packages: Iterable[str] = ("torch", "numpy")) -> dict:
    """Return date, device and versions, for a results file."""
    import torch
    from private_comfyui.install import comfyui_version, current_host

    comfyui = ".".join(map(str, comfyui_version(current_host().comfyui)))
    versions = {"Python": platform.python_version(), "ComfyUI": comfyui}
    has_gpu = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if has_gpu else cpu_name(),
        "versions": versions | {name: version(name) for name in packages},
    }
