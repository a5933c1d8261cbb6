"""Scores the paper's videos with VBench's own code, in an environment of its own.

python3 benchmarks/paper_scores.py --images DIR [--output DIR] [--measures NAME ...]

--images and --output as for benchmarks/paper.py, which has made the videos and reads the scores.
VBench fetches the weights of its measures itself, with git and wget, into ~/.cache/vbench. What is
scored already is not scored again unless there are newer videos.

Source: Huang et al., VBench, CVPR 2024, arXiv 2311.17982; its image-to-video suite.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent / "demo"))

from many_gpus import command  # noqa: E402
from many_gpus.jobs import find_pictures  # noqa: E402
from paper_tables import MEASURES, results_file  # noqa: E402
from private_comfyui.environments import (  # noqa: E402
    PACK,
    HostError,
    prepare_tools,
    run_with,
)
from private_comfyui.launch import make_torchvision_importable  # noqa: E402

INSIDE = "VCUT_VBENCH"  # environment variable: this process has VBench
WEIGHTS = Path.home() / ".cache" / "vbench"  # VBench's own choice
PYTHONS = ((3, 10), (3, 11))  # transformers 4.33.2, which VBench pins, has wheels for these


def main() -> int:
    """Score what is not scored yet, measure by measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, default=PACK / "output" / "paper")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    arguments = parser.parse_args()
    return command.exit_code_of(lambda: _score(arguments))


def _score(arguments: argparse.Namespace) -> int:
    folders = sorted(
        path.resolve() for path in (arguments.output / "vbench").glob("*/*") if path.is_dir()
    )
    if not folders:
        raise HostError(f"expected videos in {arguments.output}: run benchmarks/paper.py first.")
    if INSIDE not in os.environ:
        if sys.version_info[:2] not in PYTHONS:
            have = ".".join(map(str, sys.version_info[:2]))
            raise HostError(f"expected Python 3.10 or 3.11 for VBench, got {have}.")
        python = prepare_tools("vbench", disk_gb=8)
        return run_with(python, Path(__file__), sys.argv[1:], {INSIDE: "1"})
    pictures = {path.stem: path.resolve() for path in find_pictures([str(arguments.images)])}
    output = arguments.output.resolve()
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    os.chdir(WEIGHTS)  # one measure puts its weights into the working directory
    make_torchvision_importable()
    failed = 0
    for folder in folders:
        videos = videos_of(folder, pictures)
        for measure in arguments.measures:
            model, variant = folder.parent.name, folder.name
            results = results_file(output, model, variant, measure)
            if not is_scored(results, folder):
                failed += not _measure(results, measure, videos)
    print("\nThe command that made the videos writes the tables with these scores.")
    return int(failed > 0)


def is_scored(results: Path, folder: Path) -> bool:
    """Return whether the results are there and as new as each of the folder's videos."""
    newest = max((video.stat().st_mtime for video in folder.iterdir()), default=0.0)
    return results.exists() and results.stat().st_mtime >= newest


def videos_of(folder: Path, pictures: dict[str, Path]) -> list[dict]:
    """Return VBench's list of a folder's videos: each picture with those that begin with it.

    pictures: by name without suffix. Raises HostError for a video whose picture is not there.
    """
    videos: dict[str, list[str]] = {}
    for video in sorted(folder.iterdir()):
        videos.setdefault(video.stem.rpartition("-")[0], []).append(str(video.resolve()))
    if missing := sorted(videos.keys() - pictures.keys()):
        raise HostError(f"expected a picture named {missing[0]} in --images, found none.")
    return [
        {
            "prompt_en": name,
            "dimension": list(MEASURES),
            "image_name": str(pictures[name]),
            "video_list": paths,
        }
        for name, paths in videos.items()
    ]


def _measure(results: Path, measure: str, videos: Sequence[dict]) -> bool:
    """Let VBench write one measure's results; say in a sentence where it cannot."""
    import torch
    from vbench2_beta_i2v import VBenchI2V

    class Suite(VBenchI2V):
        """VBench's suite over our own pictures instead of its list of prompts."""

        def build_full_info_json(self, *_, **__) -> str:
            listed.write_text(json.dumps(videos), encoding="utf-8")
            return str(listed)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    listed = results.with_suffix(".videos")
    suite = Suite(device, full_info_dir="", output_path=str(results.parent))
    try:
        suite.evaluate("", measure, [measure], local=True)  # its weights lie in WEIGHTS
    except Exception as error:  # of whatever library the measure stands on
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        of = f"{results.parent.parent.name}, {results.parent.name}"
        command.say(f"{measure} of {of} could not be measured: {reason}")
        return False
    finally:
        listed.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
