"""Fills in where the repository is published: in pyproject.toml and in the README.

python3 tools/fill_in_address.py https://github.com/OWNER/NAME

Run by .github/workflows/publish.yml before it publishes. The registry wants addresses of the
repository and of the pictures; a checkout does not know its own.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "ADDRESS_OF_THIS_REPOSITORY"
FILES = ("pyproject.toml", "README.md")


def main(arguments: list[str]) -> int:
    """Replace the placeholder in every file; say so when the address is none."""
    if len(arguments) != 1 or not arguments[0].startswith("https://"):
        sys.stderr.write("VCUT: expected one https:// address of the repository.\n")
        return 1
    for name in FILES:
        fill_in(ROOT / name, arguments[0].removesuffix("/").removesuffix(".git"))
    return 0


def fill_in(file: Path, address: str) -> None:
    """Put ``address`` where ``file`` has the placeholder."""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(PLACEHOLDER, address), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
