"""Matplotlib figures as pictures for ComfyUI."""

import importlib

DOTS_PER_INCH = 100
MODULES = ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg")


def missing_matplotlib() -> str:
    """Return why matplotlib cannot draw and what to do, the end of a sentence; "" when it can."""
    try:
        for name in MODULES:  # here: without it the nodes still load
            importlib.import_module(name)
    except ImportError as error:
        return (
            f"because the Python package matplotlib could not be imported ({error}): run python -m "
            "pip install matplotlib with the Python that runs ComfyUI, then restart ComfyUI."
        )
    return ""


def blank_picture(width: int, height: int):
    """Return a white IMAGE (1, H, W, 3), where a picture cannot be drawn."""
    import torch

    return torch.ones(1, height, width, 3)


def new_figure(display_name: str, width: int, height: int):
    """Return an empty matplotlib figure of width x height pixels, with no window behind it.

    display_name: the node that asks, for the error. Raises RuntimeError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # here: without it the other nodes still load
    except ImportError as error:
        raise RuntimeError(
            f"{display_name}: expected the Python package matplotlib, could not import it "
            f"({error}). Install the pack's requirements.txt and restart ComfyUI."
        ) from error
    # Older matplotlibs round inches times dots down: 812 pixels would become 811.
    inches = (width + 0.1) / DOTS_PER_INCH, (height + 0.1) / DOTS_PER_INCH
    return Figure(figsize=inches, dpi=DOTS_PER_INCH)


def picture_of(figure):
    """Return a figure as IMAGE, a tensor (1, H, W, 3) in 0..1."""
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(1, height, width, 4)[..., :3].float() / 255
