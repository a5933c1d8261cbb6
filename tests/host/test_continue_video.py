"""VCUT Continue Video and VCUT Join Videos, on ComfyUI's own sampling."""

import pytest
import torch
from vcut.nodes.join_videos import JoinVideos

SIZE = 64
FRAMES, OVERLAP = 6, 2


@pytest.fixture(scope="module")
def video(tiny):
    """The LATENT of a first video."""
    return {"samples": tiny.sample(conditioning=tiny.conditioning(size=SIZE), steps=4)}


@pytest.fixture(scope="module")
def continued(tiny, nodes, video):
    """Return a function that continues the video: inputs of the node -> its three outputs."""

    def call(**inputs):
        given = {"video_frames": FRAMES, "overlap": OVERLAP, "samples": video}
        shared = {"clip_vision": tiny.clip_vision, "vae": tiny.vae}
        return nodes.call("VCUT_ContinueVideo", **shared, **{**given, **inputs})

    return call


def _sample(tiny, conds, model=None, cfg=1.0, **options):
    """Return the LATENT that KSampler hands on, its mask included."""
    samples = tiny.sample(model, conditioning=conds, cfg=cfg, steps=6, **options)
    return {**conds[2], "samples": samples}


# --- what the sampler is given --------------------------------------------------------------------


def test_picture_and_embedding_are_of_the_first_overlap_frame(tiny, continued, video):
    positive, negative, latent = continued()
    (embedding, given), (no_embedding, no_picture) = positive[0], negative[0]
    first = video["samples"][-OVERLAP:][:1]
    assert torch.equal(given["concat_latent_image"], first)  # not through the VAE
    picture = tiny.vae.decode(first)[..., :3]
    expected = tiny.clip_vision.encode_image(picture).image_embeds
    assert torch.equal(embedding, expected[None])
    assert not no_embedding.any() and not no_picture["concat_latent_image"].any()
    assert latent["samples"].shape == (FRAMES, 4, SIZE // 8, SIZE // 8)


def test_motion_is_that_of_the_inputs(continued):
    positive, negative, _ = continued(motion_bucket_id=60, fps=8)
    for cond in (positive, negative):
        assert (cond[0][1]["motion_bucket_id"], cond[0][1]["fps"]) == (60, 8)
        assert cond[0][1]["augmentation_level"] == 0


def test_negative_keeps_the_picture_where_it_is_told_to(continued):
    positive, negative, _ = continued(negative_picture="keep")
    pictures = [cond[0][1]["concat_latent_image"] for cond in (positive, negative)]
    assert torch.equal(*pictures) and not negative[0][0].any()


def test_augmentation_adds_the_same_noise_every_time(continued):
    plain, noisy, again, more = (
        continued(augmentation_level=level)[0][0][1]["concat_latent_image"]
        for level in (0.0, 0.02, 0.02, 0.2)
    )
    assert torch.equal(noisy, again)
    assert (noisy - plain).norm() < (more - plain).norm()


# --- what comes of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"])
def test_video_so_far_comes_out_bit_for_bit(tiny, continued, video, difference, sampler):
    new = _sample(tiny, continued(), sampler=sampler)
    assert difference(new["samples"][:OVERLAP], video["samples"][-OVERLAP:]) < 1e-4
    (joined,) = JoinVideos.execute(video, new, OVERLAP).result
    before = len(video["samples"])
    assert torch.equal(joined["samples"][:before], video["samples"])
    assert torch.equal(joined["samples"][before:], new["samples"][OVERLAP:])
    assert joined.keys() == {"samples"}  # a mask would hold in place what is sampled next


def test_new_frames_see_the_overlap(tiny, continued, video, difference):
    other = {"samples": video["samples"].clone()}
    other["samples"][-1] *= -1  # not the frame that gives picture and embedding
    new = [_sample(tiny, continued(samples=samples))["samples"] for samples in (video, other)]
    assert difference(new[0][OVERLAP:], new[1][OVERLAP:]) > 1e-2


def test_continuation_can_be_continued(tiny, continued, video):
    samples = video
    for _ in range(2):
        new = _sample(tiny, continued(samples=samples))
        (samples,) = JoinVideos.execute(samples, new, OVERLAP).result
    assert len(samples["samples"]) == len(video["samples"]) + 2 * (FRAMES - OVERLAP)
    assert samples["samples"].isfinite().all()


def test_exact_nodes_change_nothing_and_are_counted(tiny, nodes, continued, difference, summaries):
    conds = continued()
    plain = _sample(tiny, conds)["samples"]
    model = nodes.patch("VCUT_PatchSVDModel", tiny.model)
    model = nodes.patch("VCUT_FeatureSlicer", model, slices=2, scope="everything")
    assert difference(_sample(tiny, conds, model)["samples"], plain) < 1e-4
    assert "6 of 6 UNet evaluations" in summaries()[-1]
    assert "32 computed, 160 from cache" in summaries()[-1]


def test_step_cache_and_guidance_cut_work_in_a_continuation(
    tiny, nodes, continued, video, summaries
):
    model = nodes.patch("VCUT_StepCache", tiny.model)
    model = nodes.patch("VCUT_GuidanceScheduler", model, cut_step=3, steps=6)
    new = _sample(tiny, continued(), model, cfg=2.5)
    (joined,) = JoinVideos.execute(video, new, OVERLAP).result
    assert torch.equal(joined["samples"][: len(video["samples"])], video["samples"])
    assert joined["samples"].isfinite().all()
    assert "guided 2 of 6 steps" in summaries()[-1] and "steps computed" in summaries()[-1]


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"overlap": FRAMES}, "expected an overlap from 1 to 5, below video_frames, got 6"),
        ({"overlap": 5}, "at least 5 frames, as many as the overlap, got 4 frames"),
        ({"samples": {"samples": torch.zeros(4, 8, 8)}}, r"one video .* in samples, got \(4, 8"),
        ({"samples": {"samples": torch.zeros(1, 4, 2, 8, 8)}}, "one video .* in samples"),
    ],
)
def test_inputs_that_cannot_be_are_refused_in_one_sentence(continued, inputs, message):
    with pytest.raises(ValueError, match=f"^VCUT Continue Video: .*{message}"):
        continued(**inputs)


def test_another_overlap_than_the_sampler_was_given_is_refused(tiny, continued, video):
    _, _, latent = continued()
    with pytest.raises(ValueError, match="Join Videos: .* Continue Video, 2, got 3. Set it to 2"):
        JoinVideos.execute(video, latent, 3)


def test_continuation_without_a_mask_is_joined_as_told(video):
    (joined,) = JoinVideos.execute(video, {"samples": torch.zeros(6, 4, 8, 8)}, 3).result
    assert len(joined["samples"]) == len(video["samples"]) + 3


def test_mask_of_another_node_is_not_taken_for_an_overlap(video):
    new = {"samples": torch.zeros(6, 4, 8, 8), "noise_mask": torch.zeros(1, 1, 64, 64)}
    (joined,) = JoinVideos.execute(video, new, 3).result
    assert len(joined["samples"]) == len(video["samples"]) + 3


def test_videos_of_two_sizes_are_refused_in_one_sentence(video):
    with pytest.raises(ValueError, match="^VCUT Join Videos: expected two latents of one size"):
        JoinVideos.execute(video, {"samples": torch.zeros(6, 4, 8, 9)}, 3)
