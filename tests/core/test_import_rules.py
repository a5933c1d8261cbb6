"""The house's rules on imports, read from the source files themselves (DESIGN, section 3)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE, NODES, PLOTS, ADAPTER, DEMO, BENCHMARKS, TOOLS, TESTS = (
    sorted((ROOT / folder).rglob("*.py"))
    for folder in (
        "vcut_core", "nodes", "plots", "comfy_adapter", "demo", "benchmarks", "tools", "tests"
    )
)  # fmt: skip
PACK = [ROOT / "__init__.py", *NODES, *PLOTS, *ADAPTER, *CORE]
COMMANDS = [*DEMO, *BENCHMARKS, *TOOLS]
SOURCES = [*PACK, *COMMANDS, *TESTS]
# Each folder imports itself and those named here, never what stands above it.
BELOW = {
    "vcut_core": set(),
    "comfy_adapter": {"vcut_core"},
    "plots": set(),
    "nodes": {"comfy_adapter", "vcut_core", "plots"},
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> list[str]:
    """Return every module that a file names, wherever it does: "torch.nn", "..vcut_core.x"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [module] if node.module else [module + alias.name for alias in node.names]
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_relative(module: str) -> bool:
    return module.startswith(".")


def _foreign(path: Path) -> set[str]:
    """Return the top-level packages of a file's absolute imports, but for the standard library."""
    tops = {_top(module) for module in _imports(path) if not _is_relative(module)}
    return tops - sys.stdlib_module_names


def test_the_rules_have_files_to_read():
    assert all((CORE, NODES, PLOTS, ADAPTER, DEMO, BENCHMARKS, TOOLS, TESTS))
    assert not list((ROOT / "workflows").rglob("*.py"))


@pytest.mark.parametrize("path", [*NODES, *PLOTS, *ADAPTER, *CORE], ids=_name)
def test_folders_import_only_downwards(path):
    folder = path.relative_to(ROOT).parts[0]
    for module in _imports(path):
        if module.startswith(".."):
            assert _top(module.lstrip(".")) in BELOW[folder], module


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_core_imports_only_torch_einops_and_itself(path):
    assert _foreign(path) <= {"torch", "einops"}


@pytest.mark.parametrize("path", NODES, ids=_name)
def test_node_files_see_comfyui_only_through_its_api_and_the_adapter(path):
    allowed = {
        "version_check.py": {"comfyui_version"},
        "video_comparison.py": {"kornia", "torch"},
        "compare_videos.py": {"torch"},
    }
    assert _foreign(path) <= {"comfy_api"} | allowed.get(path.name, set())


@pytest.mark.parametrize("path", PLOTS, ids=_name)
def test_plots_know_nothing_of_comfyui(path):
    assert _foreign(path) <= {"matplotlib", "torch"}


def test_adapter_is_the_one_place_that_imports_comfy():
    importers = {path for path in PACK if _foreign(path) & {"comfy", "server", "nodes"}}
    assert importers and importers <= set(ADAPTER)
    host = {"comfy", "comfy_execution", "folder_paths", "server", "torch"}
    for path in ADAPTER:
        pictures = {"PIL"} if path.name == "animation.py" else set()
        assert _foreign(path) <= host | pictures


@pytest.mark.parametrize("path", PACK, ids=_name)
def test_imports_inside_the_pack_are_relative(path):
    own = {"vcut", *BELOW, "demo", "benchmarks", "tools", "tests", ROOT.name}
    assert not _foreign(path) & own


@pytest.mark.parametrize("path", [*PACK, *COMMANDS], ids=_name)
def test_product_never_imports_tests(path):
    tests = {"tests", "conftest", "pytest", "_pytest"}
    tests |= {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert not {part for module in _imports(path) for part in module.split(".")} & tests


@pytest.mark.parametrize("path", [*NODES, *PLOTS, *ADAPTER, *CORE], ids=_name)
def test_module_level_only_imports_and_defines(path):
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        is_for_types = (
            isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
        )
        assert is_docstring or is_for_types or isinstance(statement, allowed), ast.unparse(
            statement
        )
        if isinstance(statement, ast.Assign):  # a name of its own, no attribute of another module
            assert all(isinstance(target, ast.Name) for target in statement.targets)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_source_decodes_in_cp1252(path):
    assert path.read_bytes().decode("cp1252") is not None


IMPORT_AND_COMPARE = """
import logging, sys, torch, einops
import torch.nn.functional

def world():
    modules = (torch, torch.nn, torch.nn.functional, torch.nn.Module, torch.Tensor, einops)
    bound = {(str(m), name): id(value) for m in modules for name, value in vars(m).items()}
    root = logging.getLogger()
    return bound, root.level, list(root.handlers), torch.is_grad_enabled(), len(sys.path)

sys.path.insert(0, sys.argv[1])
before = world()
import vcut_core.techniques, vcut_core.run_report, vcut_core.cost_report
assert world() == before
own = [name for name in logging.Logger.manager.loggerDict if name.startswith("vcut")]
assert all(not logging.getLogger(name).handlers for name in own), own
assert not [name for name in sys.modules if name.partition(".")[0] in ("comfy", "server")]
"""


def test_nothing_in_the_process_changes_when_the_core_is_imported():
    command = [sys.executable, "-c", IMPORT_AND_COMPARE, str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_torch_is_never_required_when_the_pack_is_installed(name):
    # An artist's CUDA build of torch must survive the install.
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "pyproject.toml":
        text = text.partition("dependencies = [")[2].partition("]")[0].replace(",", "\n")
    names = [line.partition("#")[0].strip(" \"'") for line in text.splitlines()]
    assert sorted(filter(None, names)) == ["einops", "matplotlib", "safetensors"]
