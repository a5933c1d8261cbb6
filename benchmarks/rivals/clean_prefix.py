"""Ca2-VDM's prefix: earlier frames given clean, at a timestep of their own, and cached.

Gao et al., Ca2-VDM: Efficient Autoregressive Video Diffusion Model with Causal Generation and Cache
Sharing, ICML 2025, arXiv 2411.16375. Its weights are trained for it; SVD's are not, so the tiny SVD
can be tuned here for a few minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from torch import Tensor, nn

CLEAN_SIGMA = 0.002  # the least that the model was trained at
SEED = 2407
NUM_VIDEOS = 512
BATCH = 4  # videos
LEARNING_RATE = 1e-4


def with_clean_prefix(model, prefix: Tensor, causal: bool):
    """Return a clone whose first frames are ``prefix`` (O, 4, h, w), in the UNet's scale, clean.

    For one cond. causal: these frames see nothing of the later ones, so their features are the same
    in every step. Ca2-VDM keeps them; here they are computed anew, which gives the same video.
    """
    overlap = len(prefix)

    def run(apply_model, arguments: dict) -> Tensor:
        x, sigma = arguments["input"].clone(), arguments["timestep"].clone()
        x[:overlap], sigma[:overlap] = prefix.to(x), CLEAN_SIGMA
        unet = model.model.diffusion_model
        with causal_prefix(unet, overlap if causal else 0):
            return apply_model(x, sigma, **arguments["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(run)
    return clone


@contextmanager
def causal_prefix(unet: nn.Module, overlap: int) -> Iterator[None]:
    """Let layers over time compute the first frames from nothing but these."""
    hooks = []
    for module in unet.modules() if overlap else ():
        # Frames are the third dimension of (B, C, T, h, w), the second of (B * h * w, T, C).
        if isinstance(module, VideoResBlock):
            hooks.append((module.time_stack, 2))
        elif isinstance(module, SpatialVideoTransformer):
            hooks += [(block, 1) for block in module.time_stack]
    handles = [_hook(layer, axis, overlap) for layer, axis in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, axis: int, overlap: int):
    def join(_layer, args, kwargs, output):
        first = args[0].narrow(axis, 0, overlap)
        rest = (args[1][:, :overlap], *args[2:]) if axis == 2 else args[1:]  # time embeddings
        prefix = layer.forward(first, *rest, **kwargs)
        later = output.narrow(axis, overlap, output.shape[axis] - overlap)
        return torch.cat([prefix, later], axis)

    return layer.register_forward_hook(join, with_kwargs=True)


def tune_for_prefix(tiny, file: Path, overlap: int, steps: int) -> None:
    """Tune the tiny SVD's UNet for a causal clean prefix and write its weights to ``file``."""
    import train
    from command_line import progress_bar
    from trainer import step_generator
    from video_world import NUM_FRAMES

    unet = tiny.model.model.diffusion_model
    videos = _encoded_videos(tiny)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    unet.requires_grad_(True)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=0)
    is_new = torch.arange(BATCH * NUM_FRAMES) % NUM_FRAMES >= overlap
    with progress_bar("tuning", steps, "step") as bar:
        for step in range(steps):
            inputs, target = train.diffusion_batch(videos, BATCH, step_generator(SEED, step))
            sigma = (4 * inputs["timesteps"]).exp()[:, None, None, None]
            noisy, kept = inputs["x"][:, :4], ~is_new
            clean = (noisy - sigma * target) / (sigma**2 + 1).sqrt()
            inputs["x"][kept, :4] = clean[kept]
            inputs["timesteps"][kept] = 0.25 * torch.tensor(CLEAN_SIGMA).log()
            with train.autocast(), causal_prefix(unet, overlap):
                output = unet(**inputs, transformer_options={}, num_video_frames=NUM_FRAMES)
            loss = (output.float() - target)[is_new].square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            bar.update()
    torch.save({n: w.detach().clone() for n, w in unet.state_dict().items()}, file)
    unet.requires_grad_(False)
    unet.load_state_dict(before)


@torch.no_grad()
def _encoded_videos(tiny) -> dict:
    """Return videos of the tiny world as the training has them: latents, context, bucket."""
    from video_world import make_videos

    videos = make_videos(NUM_VIDEOS, seed=70_000_000)
    latents = [tiny.vae.encode(video.movedim(1, -1)) for video in videos.frames]
    pictures = videos.frames[:, 0].movedim(1, -1)
    context = [tiny.clip_vision.encode_image(p[None]).image_embeds for p in pictures]
    return {
        "latents": torch.stack(latents),
        "context": torch.cat(context),
        "motion_bucket": videos.motion_bucket,
    }
