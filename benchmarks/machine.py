"""What a results file says of the machine it was made on."""

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        match = re.search(r"model name\s*: (.+)", listing.read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()
