"""Finds the photographs of the camera world: some to train on, others to be judged by.

Those to train on come from Debian's packages of desktop backgrounds, whose licences their copyright
files tell (CC-BY, CC-BY-SA, CC0, GPL-2+). Those to be judged by are scikit-image's own.
"""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

SHORT_SIDE = 160  # pixels after scaling
BLUR = 3.5  # pixels of the scaled photograph: finer detail does not survive a VAE of 8x8 blocks

TO_BE_JUDGED_BY = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
TO_TRAIN_ON = {  # Debian package: file names as patterns
    "lomiri-wallpapers-16.04": ["*.jpg"],
    "lomiri-wallpapers-20.04": ["Fossa*", "Infinite*", "Kleiber*"],
    "mate-backgrounds": ["nature/*.jpg"],
    "plasma-workspace-wallpapers": [
        f"{name}/contents/images/{size}"
        for size, names in {
            "2560x1600.jpg": "Autumn BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow "
            "FallenLeaf Grey Kite OneStandsOut Path summer_1am",
            "5120x2880.*": "Altai SafeLanding Shell Volna",
            "3200x2000.jpg": "PastelHills",
        }.items()
        for name in names.split()
    ],
    "ukui-wallpapers": ["2004default.jpg", "calla.png", "rhythm.jpg", "string.jpg"],
}


@cache
def photographs(folder: Path | None = None) -> list[torch.Tensor]:
    """Return photographs (3, H, W) in 0..1, slightly blurred: a folder's, or scikit-image's.

    Raises FileNotFoundError when the folder has none.
    """
    paths = [Path(skimage.data_dir) / name for name in TO_BE_JUDGED_BY]
    if folder is not None:
        paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"expected photographs in {folder}, found none")
    return [_read(path) for path in paths]


def _read(path: Path) -> torch.Tensor:
    pixels = gaussian_filter(np.asarray(_scaled(path), np.float32) / 255, (BLUR, BLUR, 0))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _scaled(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    scale = SHORT_SIDE / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def fetch(folder: Path) -> None:
    """Fill the folder with small copies of the photographs to train on, by Debian's apt-get.

    Raises subprocess.CalledProcessError when a package cannot be had, FileNotFoundError when it
    lacks a photograph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # backgrounds are large
    for package, patterns in TO_TRAIN_ON.items():
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["apt-get", "download", "-q", package], cwd=unpacked, check=True)
            (archive,) = Path(unpacked).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
            for pattern in patterns:
                found = sorted(p for p in Path(unpacked).rglob(pattern) if not p.is_symlink())
                if not found:
                    raise FileNotFoundError(f"{package} has no {pattern}")
                for path in found:
                    # KDE's files are named by their size: their folder has the name.
                    name = path.stem if not path.stem[0].isdigit() else path.parts[-4]
                    _scaled(path).save(folder / f"{package}_{name}.png".lower())
            copyright_file = Path(unpacked) / "usr" / "share" / "doc" / package / "copyright"
            shutil.copy(copyright_file, folder / f"{package}.copyright.txt")
