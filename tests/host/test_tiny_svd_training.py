"""The tiny SVD's videos and training: the same command gives the same data and first losses."""

import json
import shutil
import signal
from pathlib import Path

import encoded_videos
import pytest
import torch
import train
from safetensors.torch import load_file
from tiny_svd.loader import TIME_LAYERS, WEIGHTS
from trainer import Stage, step_generator
from video_world import DIRECTIONS, NUM_FRAMES, SIZE, make_videos
from worlds import world_named

STEPS = 2
SPRITES = world_named("sprites", Path())


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """The trainer takes Ctrl-C and SIGTERM for itself; give them back."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def _latents(seed: int = 0, videos: int = 3) -> dict[str, torch.Tensor]:
    """What the stage "latents" leaves, of noise: training needs its shapes alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(videos, NUM_FRAMES, 4, SIZE // 8, SIZE // 8, generator=generator),
        "context": torch.randn(videos, 64, generator=generator),
        "motion_bucket": torch.tensor([60, 127, 200])[:videos],
    }


def _train_vae(stage, start=None):
    train.train_vae(stage, SPRITES, start, batch=1)


def _train_image_encoder(stage):
    train.train_image_encoder(stage, SPRITES, None, batch=2)


def _train_unet(stage):
    train.train_unet(stage, _latents(), None, batch=1)


def _losses(folder: Path, run, steps: int = STEPS, disturb: int = 0) -> list[dict]:
    """Train for ``steps`` in a new folder; return what was logged, without the time it took."""
    torch.manual_seed(disturb)  # nothing may hang on what other code drew before
    torch.rand(disturb)
    folder.mkdir()
    run(Stage("stage", folder, steps, learning_rate=1e-3))
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]


def _train_time_layers(stage):
    weights = shutil.copy(WEIGHTS, stage.folder)
    assert train.train_time_layers(stage, SPRITES, Path(weights))
    written = load_file(stage.folder / TIME_LAYERS)
    shipped = load_file(WEIGHTS.with_name(TIME_LAYERS))
    assert {n: w.shape for n, w in written.items()} == {n: w.shape for n, w in shipped.items()}


@pytest.mark.parametrize("run", [_train_vae, _train_image_encoder, _train_unet, _train_time_layers])
def test_same_command_gives_the_same_first_losses(tmp_path, run):
    first = _losses(tmp_path / "first", run, disturb=1)
    assert first == _losses(tmp_path / "second", run, disturb=2)
    assert [line["step"] for line in first] == [0, STEPS - 1]
    assert first[0]["loss"] != first[1]["loss"]


def test_stopped_training_goes_on_with_the_same_losses(tmp_path):
    whole = _losses(tmp_path / "whole", _train_image_encoder, steps=3)
    folder = tmp_path / "stopped"
    folder.mkdir()
    stopped_at_once = Stage("stage", folder, 3, learning_rate=1e-3, minutes=0)
    for _ in range(3):  # each run has one step
        _train_image_encoder(stopped_at_once)
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert [line["loss"] for line in lines] == [line["loss"] for line in whole]


def test_training_can_begin_with_an_exported_file(tmp_path):
    anew = _losses(tmp_path / "anew", _train_vae)
    begun = _losses(tmp_path / "begun", lambda stage: _train_vae(stage, start=WEIGHTS))
    assert begun[0]["psnr"] > anew[0]["psnr"] + 15


def test_every_step_has_randomness_of_its_own():
    draws = {float(torch.rand((), generator=step_generator(2407, step))) for step in range(50)}
    assert len(draws) == 50
    draws.add(float(torch.rand((), generator=step_generator(2408, 0))))
    assert len(draws) == 51


def test_same_seed_gives_the_same_videos_and_another_seed_others():
    videos, again, other = make_videos(3, seed=4), make_videos(3, seed=4), make_videos(3, seed=5)
    for name, value in vars(videos).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(videos.frames, other.frames)


def test_unseen_videos_are_none_of_the_seen_ones():
    # Seen and unseen seeds are the even and the odd ones: none is both.
    seen = [make_videos(1, seed=seed).path for seed in range(20)]
    unseen = [make_videos(1, seed=seed, unseen=True).path for seed in range(20)]
    assert not any(torch.equal(a, b) for a in seen for b in unseen)


def test_chosen_frames_are_those_of_the_whole_video():
    whole, chosen = make_videos(2, seed=3), make_videos(2, seed=3, frames=[0, 9])
    assert torch.equal(chosen.frames, whole.frames[:, [0, 9]])


def test_sprite_goes_where_its_looks_tell_as_fast_as_the_bucket_tells():
    videos = make_videos(16, seed=6)
    step = videos.path[:, 1:] - videos.path[:, :-1]  # (B, T - 1, 2)
    expected = DIRECTIONS[videos.direction] * 0.01 * videos.motion_bucket[:, None]
    assert torch.allclose(step, expected[:, None].expand_as(step), atol=1e-4)
    assert set(videos.direction.tolist()) == {0, 1, 2, 3}


def test_sprite_is_painted_where_its_path_is():
    videos = make_videos(8, seed=8)
    batch = torch.arange(8)
    for t in (0, 7, 13):
        x, y = videos.path[:, t].floor().long().T
        painted = videos.frames[batch, t, :, y, x]  # (B, 3)
        assert torch.allclose(painted, videos.colour, atol=0.02)


def test_videos_of_training_follow_from_the_seeds_alone(tmp_path, monkeypatch):
    class PixelMeans(torch.nn.Module):
        """In place of both networks: what it gives tells which pixels it was given."""

        def encode(self, pixels):
            return pixels.mean((2, 3), keepdim=True)

        def forward(self, pixels):
            return None, None, pixels.mean((2, 3))

    monkeypatch.setattr(encoded_videos, "CLIPS_PER_SHARD", 2)
    network = PixelMeans()
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        encoded_videos.encode_videos(tmp_path / name, SPRITES, network, network, num_videos=4)
    first, second = (
        encoded_videos.load_videos(tmp_path / "first"),
        encoded_videos.load_videos(tmp_path / "second"),
    )
    assert first["latents"].shape[:2] == (4, NUM_FRAMES)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["latents"][:2], first["latents"][2:])  # each shard has its seed
