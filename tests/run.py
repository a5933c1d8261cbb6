"""Second command of the README: sets up the private ComfyUI and runs every test.

python3 tests/run.py [--comfyui PATH] [pytest arguments]

Without pytest arguments it runs two test files at a time.
"""

import argparse
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "demo"))

from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402


def main() -> int:
    """Run pytest in the prepared environment and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--comfyui", type=Path, help="test on this ComfyUI and with its Python")
    arguments, for_pytest = parser.parse_known_args()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:], arguments.comfyui)
    except HostError as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nVCUT: stopped.", file=sys.stderr)
        return 130
    if exit_code is not None:
        return exit_code
    import pytest

    if not for_pytest:  # by file, whose tests share what they have loaded
        for_pytest = ["--numprocesses", "2", "--dist", "loadfile"]
    # One thread: a test's torch beside the server's would otherwise spin against it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Named from the root up, no test folder takes the name of ComfyUI's module ``server``.
    sys.path.remove(str(TESTS))
    os.chdir(TESTS.parent)
    options = ["--rootdir", str(TESTS.parent), "-c", str(TESTS / "pytest.ini")]
    return int(pytest.main([*options, *for_pytest]))


if __name__ == "__main__":
    sys.exit(main())
