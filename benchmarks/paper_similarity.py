"""The study of the paper's figure 1: how alike CLIP and DINO find a video's first and last frame.

python3 benchmarks/paper_similarity.py VIDEOS... --clip DIR --dino DIR [--comfyui PATH]

What the paper argues with: the nearer CLIP's embeddings of both frames are to each other, the less
of a video's motion they can tell. DIR: a network as transformers stores it,
openai/clip-vit-base-patch32 and facebook/dino-vits16 for example.

Source: Taghipour et al., IEEE Access 2025, arXiv 2407.19205, figure 1.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent / "demo"))

from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402

NETWORKS = {"CLIP": "openai/clip-vit-base-patch32", "DINO": "facebook/dino-vits16"}


def main() -> int:
    """Print a table of the mean similarity of each folder's videos, by each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path, help="folders of videos")
    parser.add_argument("--comfyui", type=Path, help="use this ComfyUI's Python")
    for name, example in NETWORKS.items():
        parser.add_argument(f"--{name.lower()}", type=Path, help=f"folder of {example}")
    arguments = parser.parse_args()
    try:
        folders = {"CLIP": arguments.clip, "DINO": arguments.dino}
        for name, folder in folders.items():
            if folder is None or not (folder / "config.json").is_file():
                raise HostError(
                    f"expected {name}'s weights with --{name.lower()}: a folder of "
                    f"{NETWORKS[name]} as Hugging Face's transformers stores it, got {folder}."
                )
        exit_code = run_inside(Path(__file__), sys.argv[1:], arguments.comfyui)
        if exit_code is not None:
            return exit_code
        print(similarity_table(arguments.videos, folders))
    except (HostError, OSError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nVCUT: stopped.", file=sys.stderr)
        return 130
    return 0


def similarity_table(folders: Sequence[Path], networks: dict[str, Path]) -> str:
    """Return Markdown: a row for each folder of videos, a column for each network."""
    embeds = {name: embedder(folder) for name, folder in networks.items()}
    lines = [f"| videos | number | {' | '.join(embeds)} |", "| --- " * (2 + len(embeds)) + "|"]
    for folder in folders:
        files = sorted(folder.glob("*.mp4"))
        if not files:
            raise HostError(f"expected videos in {folder}, found none.")
        ends = [first_and_last_frame(file) for file in files]
        means = [
            statistics.mean(similarity(embed, *frames) for frames in ends)
            for embed in embeds.values()
        ]
        cells = [folder.name, str(len(files)), *(f"{mean:.4f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def first_and_last_frame(video: Path) -> tuple:
    """Return two PIL pictures."""
    import av

    with av.open(str(video)) as container:
        first = last = None
        for frame in container.decode(video=0):
            first, last = first or frame, frame
    if first is None or last is None:
        raise HostError(f"expected a video in {video}, found no frames.")
    return first.to_image(), last.to_image()


def embedder(folder: Path) -> Callable:
    """Return a function: a PIL picture -> its embedding (N,), by the network in ``folder``.

    CLIP's is the projected one, DINO's that of the class token.
    """
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from transformers import CLIPVisionModelWithProjection as CLIPVision

    is_clip = AutoConfig.from_pretrained(folder).model_type.startswith("clip")
    network = (CLIPVision if is_clip else AutoModel).from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def embed(picture):
        output = network(**processor(picture, return_tensors="pt"))
        return output.image_embeds[0] if is_clip else output.last_hidden_state[0, 0]

    return embed


def similarity(embed: Callable, first, last) -> float:
    """Return the cosine between the embeddings of two pictures, 1 for equal ones."""
    import torch

    return float(torch.cosine_similarity(embed(first), embed(last), dim=0))


if __name__ == "__main__":
    sys.exit(main())
