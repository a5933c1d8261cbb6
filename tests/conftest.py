"""Makes the pack importable as ``vcut``, the name under which every test reads it.

The pack's root must not be on sys.path: its folder ``nodes`` would hide ComfyUI's ``nodes.py``.
"""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

pack = types.ModuleType("vcut")
pack.__path__ = [str(ROOT)]
sys.modules["vcut"] = pack
sys.path.insert(0, str(ROOT / "workflows"))
sys.path.append(str(ROOT / "tests" / "bench"))  # last: it has a run.py too
