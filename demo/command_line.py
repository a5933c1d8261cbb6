"""What the commands of this repository share in reading their options."""

import argparse


def positive(text: str) -> int:
    """Return the whole number, 1 or more, that ``text`` says; argparse tells the user otherwise."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text}")
    return value
