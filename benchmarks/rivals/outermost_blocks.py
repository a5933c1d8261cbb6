"""DeepCache: between full steps only the UNet's outermost blocks are computed.

Ma, Fang, Wang: DeepCache: Accelerating Diffusion Models for Free, CVPR 2024, arXiv 2312.00858.
Its outermost branch (cache_branch_id 0) is the first two input blocks and the last two output
blocks. With one of each it is what Step Rehash leaves to compute between full steps (Zhan et al.,
Streamlined Inference, NeurIPS 2024), as near as the paper tells: its code has not been published.
"""

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.patcher_extension import WrappersMP

from .schedule import step_of


def with_outermost_blocks(model, num_blocks: int = 2, every: int = 2):
    """Return a clone that computes the whole UNet in every ``every``-th step only."""
    clone = model.clone()
    wrapper = _OutermostBlocks(num_blocks, every)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "rival", wrapper)
    return clone


class _OutermostBlocks:
    def __init__(self, num_blocks: int, every: int) -> None:
        self.num_blocks, self.every = num_blocks, every
        self.deep: dict[tuple, torch.Tensor] = {}  # conds -> what enters the last output blocks

    def __call__(self, executor, x, timesteps, context, y, control, options, **kwargs):
        unet = executor.class_obj
        conds = tuple(options["cond_or_uncond"])
        step, _ = step_of(float(options["sigmas"][0]), options)
        if step % self.every:
            return self._outer(unet, x, timesteps, context, y, self.deep[conds], options, **kwargs)
        before = unet.output_blocks[-self.num_blocks - 1][-1]
        hook = before.register_forward_hook(lambda _m, _i, out: self.deep.update({conds: out}))
        try:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        finally:
            hook.remove()

    def _outer(self, unet, x, timesteps, context, y, h, options, **kwargs):
        emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
        emb = emb + unet.label_emb(y)
        frames = {"num_video_frames": kwargs["num_video_frames"]}
        frames["image_only_indicator"] = kwargs.get("image_only_indicator")
        skips = []
        inner = x
        for block in unet.input_blocks[: self.num_blocks]:
            inner = forward_timestep_embed(block, inner, emb, context, options, **frames)
            skips.append(inner)
        for block in unet.output_blocks[-self.num_blocks :]:
            joined = torch.cat([h, skips.pop()], dim=1)
            h = forward_timestep_embed(block, joined, emb, context, options, **frames)
        return unet.out(h.type(x.dtype))
