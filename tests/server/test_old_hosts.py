"""On a ComfyUI below the floor the pack offers nothing, says one sentence and stays quiet.

No such ComfyUI is installed for the default run (``tools/try_hosts.py`` tries real ones), so the
pack is loaded as ComfyUI loads it by a process that has of ComfyUI no more than its version.
"""

import json
import subprocess
import sys

import pytest
from private_comfyui.environments import PACK

LOAD = """
import importlib.util, json, logging, sys

class Lines(logging.Handler):
    def emit(self, record):
        lines.append([record.levelname, record.getMessage()])

lines = []
logging.getLogger().addHandler(Lines())
sys.path.insert(0, sys.argv[2])
spec = importlib.util.spec_from_file_location("VCUT", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["VCUT"] = module
spec.loader.exec_module(module)
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "comfy", "comfy_api"})
print(json.dumps({
    "lines": lines,
    "loaded": loaded,
    "mappings": getattr(module, "NODE_CLASS_MAPPINGS", None),
    "v3": hasattr(module, "comfy_entrypoint"),
}))
"""


def _load_pack(folder, version: str | None) -> subprocess.CompletedProcess:
    if version is not None:
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    command = [sys.executable, "-c", LOAD, str(PACK), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)


def _expected(named: str) -> dict:
    sentence = f"VCUT: expected ComfyUI 0.3.59 or newer, got {named}. Update ComfyUI."
    return {"lines": [["ERROR", sentence]], "loaded": [], "mappings": {}, "v3": False}


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("0.3.52", "0.3.52"),
        ("0.3.58", "0.3.58"),
        ("v0.3.9-14-g5f7a53d", "v0.3.9-14-g5f7a53d"),
        (None, "an older one"),
    ],
)
def test_old_comfyui_gets_no_nodes_and_one_sentence(tmp_path, version, named):
    result = _load_pack(tmp_path, version)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout) == _expected(named)


@pytest.mark.parametrize("version", ["unknown", "0.x"])
def test_version_that_is_no_number_is_one_sentence_too(tmp_path, version):
    result = _load_pack(tmp_path, version)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == _expected(version)
