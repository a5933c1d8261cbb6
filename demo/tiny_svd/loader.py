"""Builds ComfyUI's own MODEL, CLIP_VISION and VAE at tiny sizes from two safetensors files.

They have the key layout of the real SVD checkpoints; the second holds the time layers of the VAE's
decoder. Sizes of the UNet follow from its weights, as for every checkpoint; those of the other two
stand in the json files beside it.
"""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
from comfy.ldm.modules.temporal_ae import VideoDecoder

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "tiny_svd.safetensors"
TIME_LAYERS = "decoder_time_layers.safetensors"
CLIP_VISION_CONFIG = "clip_vision_config.json"
VAE_CONFIG = "vae_config.json"
REASON_LENGTH = 200  # characters: torch names every missing weight

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_VISION_PREFIX = "conditioner.embedders.0.open_clip.model.visual."


class TinySVDConfig(comfy.supported_models.SVD_img2vid):
    """SVD's model config with heads of 32 channels, as its narrowest layer has 32."""

    unet_extra_config = {**comfy.supported_models.SVD_img2vid.unet_extra_config}
    unet_extra_config["num_head_channels"] = 32


def load_tiny_svd(path: Path = WEIGHTS):
    """Return (ModelPatcher, ClipVisionModel, VAE) from a checkpoint of tiny sizes.

    path: of the larger file. Raises RuntimeError, naming it, when it or one beside it is missing,
    damaged or of another layout.
    """
    try:
        state_dict = _read(path)
        return (
            _model(state_dict),
            _clip_vision(state_dict, path.parent),
            _vae(state_dict, path.parent),
        )
    except Exception as error:  # safetensors, json, torch and the host each have their own
        reason = " ".join(str(error).split())[:REASON_LENGTH].rstrip(". ")
        raise RuntimeError(
            f"VCUT Load Tiny SVD: expected the tiny SVD weights in {path.name}, could not read "
            f"them ({reason}). Fetch the file again."
        ) from error


def _model(state_dict):
    unet_config = comfy.model_detection.detect_unet_config(state_dict, UNET_PREFIX)
    config = TinySVDConfig(unet_config)
    config.set_inference_dtype(None, None)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = comfy.model_base.SVD_img2vid(config, device=offload_device)
    _load(model.diffusion_model, state_dict, UNET_PREFIX)
    return comfy.model_patcher.ModelPatcher(model, load_device, offload_device)


def _clip_vision(state_dict, folder: Path):
    clip_vision = comfy.clip_vision.ClipVisionModel(str(folder / CLIP_VISION_CONFIG))
    _load(clip_vision.model, state_dict, CLIP_VISION_PREFIX)
    return clip_vision


def _vae(state_dict, folder: Path):
    ddconfig = json.loads((folder / VAE_CONFIG).read_text())
    weights = comfy.utils.state_dict_prefix_replace(state_dict, {VAE_PREFIX: ""}, filter_keys=True)
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": 4}})
    missing = vae.first_stage_model.state_dict().keys() - weights.keys()
    if missing:  # the host only warns and decodes noise
        raise KeyError(f"{len(missing)} weights of the VAE are missing, {min(missing)} first")
    # The host makes a VAE that works over time at SVD's own size only.
    decoder = VideoDecoder(**ddconfig, video_kernel_size=[3, 1, 1], alpha=0.0)
    time_layers = _read(folder / TIME_LAYERS)
    over_time = comfy.utils.state_dict_prefix_replace(time_layers, {VAE_PREFIX: ""})
    _load(decoder, {**weights, **over_time}, "decoder.")
    vae.first_stage_model.decoder = decoder.eval().to(vae.vae_dtype)
    vae.size = None  # counted anew
    return vae


def _read(path: Path) -> dict:
    if not path.is_file():  # the host's reader would load some other file, or say less
        raise FileNotFoundError(f"no such file: {path.name}")
    return comfy.utils.load_torch_file(str(path))


def _load(module, state_dict, prefix: str) -> None:
    weights = comfy.utils.state_dict_prefix_replace(state_dict, {prefix: ""}, filter_keys=True)
    module.load_state_dict(weights, strict=True)
