"""Draws the icon and the banner that the Comfy registry shows.

python3 tools/registry_pictures.py
"""

import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402

FOLDER = ROOT / "docs" / "registry"
FINER = 4  # drawn this many times larger, then reduced, for smooth edges
NIGHT, WHITE, GREY, GREEN = "#101c2c", "#ffffff", "#93a4b8", "#2fbf71"
SKY, SUN, HILL = "#8fd0ff", "#ffc93c", "#1c7c54"
STEPS, GUIDED = 25, 16  # as in workflows/svd_xt_vcut_fast.json


def main() -> int:
    """Draw both pictures and return the exit code."""
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
    except HostError as error:
        sys.stderr.write(f"VCUT: {error}\n")
        return 1
    if exit_code is not None:
        return exit_code
    for name, picture in (("icon", _icon()), ("banner", _banner())):
        small = picture.resize([side // FINER for side in picture.size])
        small.save(FOLDER / f"{name}.png", optimize=True)
    return 0


def _icon():
    """Return frames that come out of a picture, above steps of which few are computed: 400x400."""
    picture = _canvas(400, 400)
    _frames(picture, (24, 130), (250, 150), 5, (25, -25))
    _marks(picture, (42, 342), 63, 25, [True, False, True, False, False, True])
    return picture


def _banner():
    """Return the icon's picture beside the pack's name, above the steps of a real run: 1260x540."""
    picture = _canvas(1260, 540)
    _write(picture, (60, 40), "VCUT", 130, WHITE)
    _write(picture, (64, 208), "Stable Video Diffusion,", 42, WHITE)
    _write(picture, (64, 264), "faster, lighter, longer", 42, GREEN)
    _frames(picture, (690, 150), (336, 189), 6, (32, -24))
    steps = _computed_steps()
    _marks(picture, (78, 414), 46, 15, steps)
    text = f"{sum(steps)} of {STEPS} steps computed, no training"
    _write(picture, (64, 454), text, 40, GREY)
    return picture


def _computed_steps() -> list[bool]:
    """Return which steps VCUT Step Cache computes at its defaults, on SVD's karras schedule."""
    from vcut_core.step_cache import StepCacheConfig

    highest, lowest = 700 ** (1 / 7), 0.002 ** (1 / 7)
    shares = [step / (STEPS - 1) for step in range(STEPS)]
    sigmas = [(highest + share * (lowest - highest)) ** 7 for share in shares]
    plan = StepCacheConfig().plan([*sigmas, 0.0], [step < GUIDED for step in range(STEPS)])
    return list(plan.is_computed)


def _canvas(width: int, height: int):
    from PIL import Image

    return Image.new("RGB", (width * FINER, height * FINER), NIGHT)


def _frames(picture, place, size, count: int, shift) -> None:
    """Draw the frames of a short video, the last one at the back, paler the later they come."""
    from PIL import Image

    for index in reversed(range(count)):
        time = index / (count - 1)
        frame = Image.blend(_scene(size, time), Image.new("RGB", _large(size), NIGHT), 0.6 * time)
        corner = [at + index * step for at, step in zip(place, shift, strict=True)]
        picture.paste(frame, _large(corner), _rounded(size))


def _scene(size, time: float):
    """Return one frame (width, height) of a sun that rises over hills. time: 0..1."""
    from PIL import Image, ImageDraw

    width, height = _large(size)
    frame = Image.new("RGB", (width, height), SKY)
    draw = ImageDraw.Draw(frame)
    middle, radius = (width * (0.3 + 0.4 * time), height * (0.45 - 0.2 * time)), height * 0.17
    draw.circle(middle, radius, SUN)
    for color, left, peak, right in ((HILL, 0.3, 0.35, 1.25), (GREEN, -0.3, 0.5, 0.75)):
        corners = (left, 1), ((left + right) / 2, peak), (right, 1)
        draw.polygon([(width * x, height * y) for x, y in corners], color)
    draw.rounded_rectangle((0, 0, width, height), height // 10, outline=WHITE, width=4 * FINER)
    return frame


def _rounded(size):
    from PIL import Image, ImageDraw

    mask = Image.new("L", _large(size), 0)
    width, height = mask.size
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width, height), height // 10, 255)
    return mask


def _marks(picture, first, apart: int, radius: int, steps: list[bool]) -> None:
    """Draw a mark for each step: full where it is computed, a ring where it is predicted."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    for index, is_computed in enumerate(steps):
        middle = _large((first[0] + index * apart, first[1]))
        fill = SUN if is_computed else None
        draw.circle(middle, radius * FINER, fill, SUN if is_computed else GREY, radius * FINER // 5)


def _write(picture, place, text: str, size: int, color: str) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(picture).text(_large(place), text, color, _font(size))


@cache
def _font(size: int):
    from matplotlib import get_data_path
    from PIL import ImageFont

    path = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size * FINER)


def _large(values) -> tuple[int, ...]:
    return tuple(value * FINER for value in values)


if __name__ == "__main__":
    sys.exit(main())
