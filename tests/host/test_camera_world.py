"""The videos of the camera world: what the first frame tells, what it leaves open."""

from pathlib import Path

import camera_world
import pytest
import torch
from camera_world import DIRECTIONS, KIND_NAMES, NUM_FRAMES, SIZE, ZOOMS, make_videos
from PIL import Image
from video_truth import centroids, directions_right, psnr, zooms_right

NUM_VIDEOS = 24


@pytest.fixture(scope="module")
def videos():
    return make_videos(NUM_VIDEOS, seed=3)


def test_frames_are_pictures_and_every_kind_occurs(videos):
    assert videos.frames.shape == (NUM_VIDEOS, NUM_FRAMES, 3, SIZE, SIZE)
    assert videos.frames.min() >= 0 and videos.frames.max() <= 1
    assert set(videos.direction.tolist()) == set(range(len(KIND_NAMES)))


def test_chance_changes_how_a_video_goes_on_but_not_its_first_frame(videos):
    other = make_videos(NUM_VIDEOS, seed=3, chance=1)
    assert torch.equal(videos.frames[:, 0], other.frames[:, 0])
    assert (psnr(videos.frames[:, -1], other.frames[:, -1]) < 40).all()
    assert torch.equal(videos.direction, other.direction)


def test_way_and_zoom_are_those_that_the_looks_tell(videos):
    goes = DIRECTIONS[videos.direction].any(1)
    assert torch.equal(goes, ZOOMS[videos.direction] == 0)
    assert directions_right(videos, videos.frames, DIRECTIONS)[goes].all()
    assert zooms_right(videos, videos.frames)[~goes].all()
    mass = centroids(videos.frames, videos.colour)[1]
    grows = mass[:, -1] > mass[:, 0]
    assert torch.equal(grows[~goes], (ZOOMS[videos.direction] > 0)[~goes])
    backwards = videos.frames.flip(1)
    assert not directions_right(videos, backwards, DIRECTIONS)[goes].any()
    assert not zooms_right(videos, backwards)[~goes].any()


def test_photograph_moves_against_the_sprite_that_the_camera_follows(monkeypatch, tmp_path):
    # A photograph that grows brighter to the right: a camera that goes right sees brighter ones.
    ramp = Image.linear_gradient("L").rotate(90).resize((400, 200)).convert("RGB")
    ramp.save(tmp_path / "ramp.png")
    for name in ("DRIFT", "SHAKE"):
        monkeypatch.setattr(camera_world, name, 0.0)
    videos = make_videos(NUM_VIDEOS, seed=3, folder=tmp_path)
    corner = videos.frames[:, :, :, :4, :].mean((2, 3, 4))  # (B, T): above hills and most sprites
    brighter = corner[:, -1] - corner[:, 0]
    right, left = (videos.direction == KIND_NAMES.index(name) for name in ("right", "left"))
    mirrored = videos.frames[:, 0, :, 2, 0].mean(1) > videos.frames[:, 0, :, 2, -1].mean(1)
    towards = torch.where(mirrored, -brighter, brighter)
    assert (towards[right] > 0).all() and (towards[left] < 0).all()


def test_chosen_frames_are_those_of_the_whole_video(videos):
    chosen = make_videos(NUM_VIDEOS, seed=3, frames=[0, 9])
    assert torch.equal(chosen.frames, videos.frames[:, [0, 9]])


def test_folder_without_photographs_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected photographs in"):
        make_videos(1, seed=0, folder=Path(tmp_path))
