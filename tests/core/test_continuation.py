"""The latent that continues a video, and joining the two."""

import pytest
import torch
from vcut.vcut_core.continuation import join_videos, kept_frames, latent_to_continue


def _video(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("frames", "overlap", "new"), [(14, 4, 10), (4, 4, 1), (30, 1, 13)])
def test_latent_begins_with_the_end_of_the_video_and_the_mask_holds_it(frames, overlap, new):
    video = _video(frames)
    latent, mask = latent_to_continue(video, overlap, overlap + new)
    assert torch.equal(latent[:overlap], video[-overlap:])
    assert not latent[overlap:].any() and len(latent) == overlap + new
    assert mask.shape == (overlap + new, 1, 3, 5)
    assert not mask[:overlap].any() and (mask[overlap:] == 1).all()
    assert kept_frames(mask) == overlap


@pytest.mark.parametrize("overlap", [0, -1, 14, 15])
def test_overlap_that_leaves_no_new_frame_is_refused(overlap):
    with pytest.raises(ValueError, match=f"overlap from 1 to 13, .* got {overlap}"):
        latent_to_continue(_video(20), overlap, 14)


def test_video_shorter_than_the_overlap_is_refused():
    with pytest.raises(ValueError, match="at least 4 frames, as many as the overlap, got 1 frame"):
        latent_to_continue(_video(1), 4, 14)


@pytest.mark.parametrize(
    ("mask", "kept"),
    [([1, 1], 0), ([0, 0, 1], 2), ([0, 1, 0], 1), ([0, 0], 2)],
)
def test_kept_frames_are_counted_from_the_beginning(mask, kept):
    assert kept_frames(torch.tensor(mask, dtype=torch.float32)[:, None, None]) == kept


def test_frame_that_a_mask_holds_in_part_is_not_kept():
    mask = torch.zeros(3, 2, 2)
    mask[1, 0, 0] = 1
    assert kept_frames(mask) == 1


def test_joined_video_is_the_first_one_and_the_new_frames():
    video, continuation = _video(14), _video(14, seed=1)
    joined = join_videos(video, continuation, 4)
    assert torch.equal(joined[:14], video) and torch.equal(joined[14:], continuation[4:])


def test_joined_video_keeps_the_dtype_of_the_first():
    assert join_videos(_video(2), _video(3).half(), 1).dtype == torch.float32


@pytest.mark.parametrize("overlap", [0, 5, 6])
def test_overlap_that_a_continuation_cannot_have_is_refused(overlap):
    with pytest.raises(ValueError, match=f"overlap from 1 to 4, .* got {overlap}"):
        join_videos(_video(14), _video(5), overlap)


def test_videos_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size, got .* \(4, 3, 5\) and \(4, 3, 4\)"):
        join_videos(_video(4), _video(4)[..., :4], 2)
