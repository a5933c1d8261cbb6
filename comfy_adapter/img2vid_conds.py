"""The conditioning that SVD has of a picture, made of a frame's latent."""

import torch
from torch import Tensor


def conds_of_frame(clip_vision, vae, frame: Tensor, motion: dict, keeps_negative_picture: bool):
    """Return (positive, negative), as SVD_img2vid_Conditioning makes them of a picture.

    Each has an image embedding (1, 1, width) and a picture (1, 4, h, w), both zero in the negative
    unless it keeps the picture. frame: (1, 4, h, w), taken as it is: not through the VAE, but for
    the embedding. motion: motion_bucket_id, fps and augmentation_level; above 0 the decoded frame
    is encoded once more, with the same noise every time.
    """
    picture = vae.decode(frame)[..., :3]
    embedding = clip_vision.encode_image(picture).image_embeds.unsqueeze(0)
    if motion["augmentation_level"] > 0:
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
        frame = vae.encode(picture + motion["augmentation_level"] * noise.to(picture))
    kept = frame if keeps_negative_picture else torch.zeros_like(frame)
    positive = [[embedding, {**motion, "concat_latent_image": frame}]]
    negative = [[torch.zeros_like(embedding), {**motion, "concat_latent_image": kept}]]
    return positive, negative
