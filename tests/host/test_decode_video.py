"""VCUT Decode Video: the whole decode in slices, on ComfyUI's own VAE of SVD."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.temporal_ae import VideoResBlock
from full_size_svd import VAE, fill_with_random_weights, make_video_autoencoder
from live_memory import LiveMemory
from vcut.comfy_adapter import video_decode
from vcut.comfy_adapter.vae_stages import stages_of
from vcut.nodes.decode_video import DecodeVideo
from vcut.vcut_core.video_decoding import MAX_SLICES, DecodeMemory, decode_video

CPU = torch.device("cpu")
SMALL = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 32}


@pytest.fixture(scope="module")
def autoencoder():
    autoencoder = make_video_autoencoder(**SMALL)
    fill_with_random_weights(autoencoder)
    return autoencoder


@pytest.fixture(scope="module")
def vae():
    """SVD's VAE at full width with random weights, as ComfyUI makes it of a checkpoint's."""
    empty = comfy.sd.VAE(sd={"decoder.mid.block_1.mix_factor": torch.zeros(1)})
    fill_with_random_weights(empty.first_stage_model)
    return comfy.sd.VAE(sd=empty.first_stage_model.state_dict(), dtype=torch.float32)


def copy(_number, frame):
    """Let a frame wait apart from the others that were computed with it."""
    return frame.clone()


@pytest.fixture(scope="module")
def latent():
    return torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(vae, latent):
    """All frames through the decoder at once, as pictures."""
    with torch.inference_mode():
        pixels = vae.process_output(vae.first_stage_model.decode(latent))
    return pixels.movedim(1, -1)


# --- the same as the whole ------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 7, MAX_SLICES])
@pytest.mark.parametrize("keeps_hidden", [True, False])
@torch.inference_mode()
def test_slices_give_what_the_whole_decoder_gives(autoencoder, difference, slices, keeps_hidden):
    latent = torch.randn(5, 4, 6, 7)
    expected = autoencoder.decode(latent)
    output = decode_video(
        latent, stages_of(autoencoder), slices, CPU, copy, keeps_hidden=keeps_hidden
    )
    assert difference(output, expected) < 1e-5
    in_chunks = torch.cat([autoencoder.decode(latent[:2]), autoencoder.decode(latent[2:])])
    assert difference(in_chunks, expected) > 1e-2  # which is what this is about


@pytest.mark.parametrize("slices", [0, 1, 2, 5, 64])
def test_node_decodes_a_video_as_one(vae, latent, whole, difference, slices):
    (images,) = DecodeVideo.execute({"samples": latent}, vae, slices).result
    assert images.shape == (5, 32, 48, 3) and images.dtype == torch.float32
    assert difference(images, whole) < 1e-5
    assert 0 <= images.min() and images.max() <= 1


def test_tiny_svd_is_decoded_as_one_video_too(tiny, difference):
    # Its VAE has a convolution before the decoder, as those of other models.
    latent = 5 * torch.randn(5, 4, 8, 8)
    expected = tiny.vae.decode(latent)  # all frames fit here
    decoded = video_decode.decode(tiny.vae, latent, 3)
    assert decoded.lines[:2] == ["5 frames decoded as one video", "3 slices, 0.0 GB at once"]
    assert difference(decoded.images, expected) < 1e-5
    alone = torch.cat([tiny.vae.decode(frame[None]) for frame in latent])
    assert difference(alone, expected) > 1e-3


def test_picture_does_not_depend_on_the_free_memory(vae, latent, whole, difference, monkeypatch):
    monkeypatch.setattr(video_decode.comfy.model_management, "get_free_memory", lambda *_: 2e7)
    decoded = video_decode.decode(vae, latent, 0)
    lines = decoded.lines
    assert difference(decoded.images, whole) < 1e-5
    assert lines[0] == "5 frames decoded as one video"
    assert lines[2] == "VAE Decode would have taken 1 frame at a time"
    assert int(lines[1].split()[0]) > 1 and "(automatic)" in lines[1]


def test_single_frame_is_a_video_of_one(vae, latent, difference):
    (images,) = DecodeVideo.execute({"samples": latent[:1]}, vae, 3).result
    with torch.inference_mode():
        expected = vae.process_output(vae.first_stage_model.decode(latent[:1])).movedim(1, -1)
    assert difference(images, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_differs_by_what_the_dtype_does(autoencoder, difference, dtype):
    latent = torch.randn(5, 4, 6, 7)
    exact = autoencoder.decode(latent)
    half = make_video_autoencoder(**SMALL)
    half.load_state_dict(autoencoder.state_dict())
    half = half.to(dtype)
    own = difference(half.decode(latent.to(dtype)).float(), exact)
    output = decode_video(latent.to(dtype), stages_of(half), 3, CPU, copy)
    assert output.dtype == dtype
    assert difference(output.float(), exact) < 1.5 * own


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    """SVD-XT's VAE without its weights."""
    autoencoder = make_video_autoencoder().to("meta").half()
    autoencoder.decoder.mid.attn_1.optimized_attention = lambda q, k, v: torch.empty_like(q)
    return autoencoder


@pytest.mark.parametrize("slices", [1, 2, 5, 13, 25, 50])
@pytest.mark.parametrize("frames", [14, 25])
@torch.inference_mode()
def test_estimate_covers_the_live_peak_at_full_size(full_size, slices, frames):
    stages = stages_of(full_size)
    latent = torch.empty(frames, 4, 72, 128, device="meta", dtype=torch.float16)
    memory = DecodeMemory(stages, frames, 72 * 128, 2)
    with LiveMemory() as live:
        decode_video(latent, stages, slices, latent.device, lambda _, frame: frame)
    expected = memory.required_bytes(slices, resting=int(slices > 1))
    assert 1.05 < expected / live.peak_bytes < 1.4


def test_thirteen_slices_of_svd_xt_work_on_less_than_2_5_gb(full_size):
    memory = DecodeMemory(stages_of(full_size), 25, 72 * 128, 2)
    assert memory.working_bytes(13) < 2.5e9
    assert memory.working_bytes(1) == pytest.approx(26.4e9, rel=0.01)


def test_67_frames_of_svd_xt_take_what_the_help_page_says(full_size):
    memory = DecodeMemory(stages_of(full_size), 67, 72 * 128, 2)
    assert round(memory.working_bytes(34) / 1e9, 1) == 2.1
    assert round(memory.resting_bytes / 1e9, 1) == 10.1


def test_fewest_slices_that_fit_are_chosen(full_size):
    memory = DecodeMemory(stages_of(full_size), 25, 72 * 128, 2)
    assert memory.choose(40e9) == 1
    # With what waits on the device too, and what lies between two convolutions.
    fits = memory.choose(16e9)
    assert memory.required_bytes(fits, 2) <= 16e9 < memory.required_bytes(fits - 1, 2)
    assert memory.keeps_hidden(fits, 16e9) and not memory.keeps_hidden(fits - 1, 16e9)
    # Too little for both: what lies between is computed twice.
    fits = memory.choose(6e9)
    assert memory.required_bytes(fits, 1) <= 6e9
    assert not memory.keeps_hidden(fits, 6e9)
    # Too little for what waits: that goes to system memory.
    assert memory.required_bytes(memory.choose(3e9), 0) <= 3e9 < memory.required_bytes(64, 1)
    assert memory.choose(1e6) == MAX_SLICES


def test_frames_that_do_not_fit_wait_elsewhere(autoencoder, difference):
    latent = torch.randn(4, 4, 6, 7)
    rested = []

    def rest(_number, frame):
        rested.append(frame.shape)
        return frame.clone()

    with torch.inference_mode():
        output = decode_video(latent, stages_of(autoencoder), 4, CPU, rest)
        assert difference(output, autoencoder.decode(latent)) < 1e-5
    assert len(rested) % 4 == 0


def test_system_memory_is_pinned_while_frames_wait_there(monkeypatch):
    management, pinned = comfy.model_management, []
    allowed = management.PINNING_ALLOWED_TYPES

    def pin(tensor):
        if type(tensor).__name__ not in allowed or len(pinned) == 2:  # 2: its limit
            return False
        pinned.append(tensor.data_ptr())
        return True

    monkeypatch.setattr(management, "pin_memory", pin)
    monkeypatch.setattr(management, "unpin_memory", lambda t: pinned.remove(t.data_ptr()))
    frames = torch.randn(3, 4, 6, 7)
    with pytest.raises(KeyError), video_decode.SystemMemory(frames[0].nbytes) as system:
        for large in (True, False):  # a smaller one takes the same place
            stage = frames if large else frames[..., :3].half()
            rested = [system.rest(number, frame) for number, frame in enumerate(stage)]
            assert all(map(torch.equal, rested, stage))
            assert len(pinned) == 2
        raise KeyError
    assert not pinned


def test_comfyui_is_told_the_true_need(vae, latent, monkeypatch):
    told = []
    load = comfy.model_management.load_models_gpu

    def note(models, memory_required=0, **options):
        told.append(memory_required)
        return load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", note)
    DecodeVideo.execute({"samples": latent}, vae, 5)
    memory = DecodeMemory(stages_of(vae.first_stage_model), 5, 24, 4)
    assert told == [memory.required_bytes(5, 0)]


def test_more_slices_are_taken_when_memory_runs_out(vae, latent, whole, difference, monkeypatch):
    asked = []
    decode = video_decode.decode_video

    def fail_once(samples, stages, slices, *args):
        asked.append(slices)
        if len(asked) == 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return decode(samples, stages, slices, *args)

    monkeypatch.setattr(video_decode, "decode_video", fail_once)
    decoded = video_decode.decode(vae, latent, 2)
    assert asked == [2, 4] and difference(decoded.images, whole) < 1e-5
    assert decoded.lines[1].startswith("4 slices")


def test_memory_that_is_never_there_is_one_sentence(vae, latent, monkeypatch):
    def fail(*_args):
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(video_decode, "decode_video", fail)
    with pytest.raises(RuntimeError, match="VCUT Decode Video: expected .* GB of free memory"):
        DecodeVideo.execute({"samples": latent}, vae, 2)


# --- what is not SVD's, and what is wrong ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["Stable Diffusion's", "SV3D's"])
def test_vae_without_a_time_axis_decodes_as_ever(kind):
    if kind == "SV3D's":  # of full width: no post_quant_conv, no layers over time
        vae = comfy.sd.VAE(sd={"decoder.conv_in.weight": torch.zeros(512, 4, 3, 3)})
    else:
        config = {"params": {"ddconfig": {**VAE, **SMALL}, "embed_dim": 4}}
        vae = comfy.sd.VAE(sd={}, config=config)
    fill_with_random_weights(vae.first_stage_model)
    latent = torch.randn(3, 4, 4, 4)
    decoded = video_decode.decode(vae, latent, 0)
    assert torch.equal(decoded.images, vae.decode(latent))
    assert decoded.lines == video_decode.NO_TIME_AXIS


def test_vae_that_another_pack_hooks_into_decodes_as_ever(vae, latent):
    block = vae.first_stage_model.decoder.mid.block_1
    assert isinstance(block, VideoResBlock)
    hook = block.register_forward_hook(lambda _m, _i, output: output * 1)
    try:
        decoded = video_decode.decode(vae, latent, 2)
        assert torch.equal(decoded.images, vae.decode(latent))
        assert decoded.lines == video_decode.HOOKED_INTO
    finally:
        hook.remove()
    assert stages_of(vae.first_stage_model) is not None


@pytest.mark.parametrize("owner", ["vae", "first_stage_model"])
def test_decoding_that_another_pack_has_replaced_is_respected(vae, latent, monkeypatch, owner):
    changed = vae if owner == "vae" else vae.first_stage_model
    own = changed.decode
    monkeypatch.setattr(changed, "decode", lambda samples: own(samples) * 0.5)
    decoded = video_decode.decode(vae, latent, 2)
    assert torch.equal(decoded.images, vae.decode(latent))
    assert decoded.lines == video_decode.HOOKED_INTO


def test_hook_on_a_convolution_is_called(autoencoder):
    seen = []
    hook = autoencoder.decoder.mid.block_1.conv1.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        decode_video(torch.randn(3, 4, 6, 7), stages_of(autoencoder), 3, CPU, copy)
    hook.remove()
    assert seen


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 4, 5, 8, 8), (0, 4, 8, 8)])
def test_latent_of_another_kind_is_refused_in_one_sentence(vae, shape):
    with pytest.raises(ValueError, match="VCUT Decode Video: expected the frames of one video"):
        DecodeVideo.execute({"samples": torch.zeros(shape)}, vae, 0)


def test_latent_of_another_model_is_refused_in_one_sentence(vae):
    with pytest.raises(ValueError, match="Video: expected a latent of 4 channels, .* got 16. Conn"):
        DecodeVideo.execute({"samples": torch.zeros(5, 16, 4, 6)}, vae, 0)


@pytest.mark.parametrize("slices", [-1, 65])
def test_slices_out_of_range_are_refused(vae, latent, slices):
    with pytest.raises(ValueError, match=f"slices from 0 .* to 64, got {slices}"):
        DecodeVideo.execute({"samples": latent}, vae, slices)


def test_user_may_interrupt(vae, latent, monkeypatch):
    def interrupted():
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(
        comfy.model_management, "throw_exception_if_processing_interrupted", interrupted
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        DecodeVideo.execute({"samples": latent}, vae, 2)
