"""What the demo refuses: in one sentence, before anything is installed or started."""

import json
import os
import subprocess
import sys

import pytest
from private_comfyui.install import DEMO, INSIDE, WORKFLOWS

EXAMPLE = DEMO / "tiny_svd" / "example_input.png"


@pytest.fixture
def demo(tmp_path):
    """Return a function that runs the demo on this Python and returns its last line."""

    def run(*arguments, is_prepared=False, **environment) -> str:
        variables = {**os.environ, **environment}
        if not is_prepared:  # as the user types it: whatever follows would be an installation
            variables.pop(INSIDE)
        output = ["--output", str(tmp_path / "output")]
        command = [sys.executable, str(DEMO / "run.py"), *output, *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, timeout=60)
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert done.returncode in (1, 2) and "Traceback" not in text, text
        assert "Setting up" not in text and "Starting" not in text
        return text.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--steps", "0", " from 1 to 10000, got 0"),
        ("--steps", "1.5", " from 1 to 10000, got 1.5"),
        ("--steps", "99999999999", " from 1 to 10000, got 99999999999"),
        ("--cut-step", "-1", " from 1 to 10000, got -1"),
        ("--frames", "none", ", 1 or more, got none"),
        ("--width", "63", " from 16 to 16384, a multiple of 8, got 63"),
        ("--height", "8", " from 16 to 16384, a multiple of 8, got 8"),
        ("--seed", "-1", " from 0 to 18446744073709551615, got -1"),
    ],
)
def test_number_out_of_bounds(demo, option, value, expected):
    assert demo(option, value).endswith(f"argument {option}: expected a whole number{expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a picture (PNG, JPEG, WebP, ...), got"),
        (b"a text", "expected a picture (PNG, JPEG, WebP, ...), got"),
        (b"\xff\xd8\xff no JPEG", "could not read the picture"),
        (EXAMPLE.read_bytes()[:-2000], "could not read the picture"),
    ],
)
def test_file_that_is_no_whole_picture(demo, tmp_path, content, expected):
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    assert demo("--image", str(file), is_prepared=True).startswith(f"VCUT: {expected}")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp932", "ascii"])
def test_path_that_the_terminal_cannot_write(demo, tmp_path, encoding):
    missing = tmp_path / "\u00e9\u4e2d\u0416 a.png"
    told = demo("--image", str(missing), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert told.startswith("VCUT: expected a picture, found no file")


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--comfyui", "nowhere", "expected a ComfyUI folder with a main.py, got"),
        ("--comfyui", ".", "expected a ComfyUI folder with a main.py, got"),
        ("--output", "file/below", "expected a folder to write to, got"),
        ("--workflow", "file", "expected a workflow in"),
        ("--workflow", "nowhere", "expected a workflow in"),
        ("--workflow", ".", "expected a workflow in"),
    ],
)
def test_path_of_another_kind(demo, tmp_path, option, name, expected):
    (tmp_path / "file").write_text("a text")
    assert demo(option, str(tmp_path / name)).startswith(f"VCUT: {expected}")


def test_workflow_without_our_nodes(demo, tmp_path):
    workflow = json.loads((WORKFLOWS / "svd_vcut.json").read_text(encoding="utf-8"))
    workflow["nodes"] = [n for n in workflow["nodes"] if not n["type"].startswith("VCUT_")]
    file = tmp_path / "stock.json"
    file.write_text(json.dumps(workflow))
    assert "has no VCUT node" in demo("--workflow", str(file))


def test_workflow_with_the_slicer_alone_is_taken(demo, tmp_path):
    workflow = tmp_path / "slicer.json"
    inputs = {"model": ["2", 0], "slices": 2, "scope": "blocks"}
    workflow.write_text(json.dumps({"1": {"class_type": "VCUT_FeatureSlicer", "inputs": inputs}}))
    told = demo("--workflow", str(workflow), "--comfyui", str(tmp_path))
    assert "a ComfyUI folder with a main.py" in told  # the next check


def test_unknown_checkpoint_names_the_choices(demo, tmp_path):
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "svd_xt.safetensors").touch()
    (tmp_path / "main.py").touch()
    told = demo("--comfyui", str(tmp_path), "--checkpoint", "svd.safetensors")
    assert told == "VCUT: no checkpoint svd.safetensors. Choices: svd_xt.safetensors."
