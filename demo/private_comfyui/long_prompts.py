"""Makes a prompt's video longer than its model's own: VCUT's way, and the usual one."""

import copy

from private_comfyui.prompts import (
    DECODER,
    STOCK_DECODER,
    WorkflowError,
    nodes_of,
    reconnect,
)

CONDITIONING = "SVD_img2vid_Conditioning"
CONTINUE, JOIN = "VCUT_ContinueVideo", "VCUT_JoinVideos"
OVERLAP = 4  # frames
FRAMES = "all_frames"  # the node whose pictures are a chain's video


def video_frames(prompt: dict) -> int | None:
    """Return the frames of the prompt's videos, None where they are not told by a number."""
    given = (prompt[node]["inputs"].get("video_frames") for node in nodes_of(prompt, CONDITIONING))
    return max((frames for frames in given if isinstance(frames, int)), default=None)


def first_part(prompt: dict) -> tuple[dict, int]:
    """Return the prompt without its continuations, and how many there were."""
    prompt = copy.deepcopy(prompt)
    continuations = nodes_of(prompt, CONTINUE)
    for join in nodes_of(prompt, JOIN):
        reconnect(prompt, [join, 0], prompt.pop(join)["inputs"]["samples"])
    for node_id in continuations:
        prompt.pop(node_id)
        for other, node in list(prompt.items()):
            if any(v == [node_id, k] for v in node["inputs"].values() for k in range(3)):
                prompt.pop(other)
    return prompt, len(continuations)


def continued(prompt: dict, frames: int) -> dict:
    """Return the prompt with its video continued to so many frames by VCUT Continue Video.

    Raises WorkflowError unless the prompt has one sampler and one conditioning.
    """
    prompt = copy.deepcopy(prompt)
    sampler, condition, length = _one_video(prompt)
    inputs = prompt[condition]["inputs"]
    kept = ("clip_vision", "vae", "video_frames", "motion_bucket_id", "fps", "augmentation_level")
    shared = {name: inputs[name] for name in kept}
    whole, made, part = [sampler, 0], length, 0
    while made < frames:
        part += 1
        names = [f"{name}_{part}" for name in ("continue", "sampler", "join")]
        prompt[names[0]] = {
            "class_type": CONTINUE,
            "inputs": shared | {"samples": whole, "overlap": OVERLAP, "negative_picture": "zero"},
        }
        conds = {name: [names[0], k] for k, name in enumerate(("positive", "negative"))}
        prompt[names[1]] = _another_sampler(
            prompt[sampler], part, cfg=1.0, latent_image=[names[0], 2], **conds
        )
        joined = {"samples": whole, "continuation": [names[1], 0], "overlap": OVERLAP}
        prompt[names[2]] = {"class_type": JOIN, "inputs": joined}
        whole, made = [names[2], 0], made + length - OVERLAP
    cut = {"samples": whole, "batch_index": 0, "length": frames}
    prompt["cut"] = {"class_type": "LatentFromBatch", "inputs": cut}
    for node_id in nodes_of(prompt, DECODER, STOCK_DECODER):
        prompt[node_id]["inputs"]["samples"] = ["cut", 0]
    return prompt


def last_frame_chain(prompt: dict, frames: int) -> dict:
    """Return the prompt with its video continued from the picture of its last frame, again and
    again: what people do without VCUT. Its frames come from the node FRAMES.

    Raises WorkflowError unless the prompt has one sampler, one conditioning and one VAE Decode.
    """
    prompt = copy.deepcopy(prompt)
    sampler, condition, length = _one_video(prompt)
    decoder = _only(prompt, STOCK_DECODER)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if value == [decoder, 0]:
                node["inputs"][name] = [FRAMES, 0]
    whole, made, part = [decoder, 0], length, 0
    while made < frames:
        part += 1
        names = ("picture", "condition", "sampler", "decode", "rest", "joined")
        picture, next_condition, next_sampler, decode, rest, joined = (
            f"{name}_{part}" for name in names
        )
        prompt[picture] = _from_batch(whole, made - 1, 1)
        inputs = prompt[condition]["inputs"] | {"init_image": [picture, 0]}
        prompt[next_condition] = {"class_type": CONDITIONING, "inputs": inputs}
        sockets = enumerate(("positive", "negative", "latent_image"))
        conds = {name: [next_condition, k] for k, name in sockets}
        prompt[next_sampler] = _another_sampler(prompt[sampler], part, **conds)
        inputs = prompt[decoder]["inputs"] | {"samples": [next_sampler, 0]}
        prompt[decode] = {"class_type": STOCK_DECODER, "inputs": inputs}
        prompt[rest] = _from_batch([decode, 0], 1, length - 1)  # its first repeats the picture
        both = {"image1": whole, "image2": [rest, 0]}
        prompt[joined] = {"class_type": "ImageBatch", "inputs": both}
        whole, made = [joined, 0], made + length - 1
    prompt[FRAMES] = _from_batch(whole, 0, frames)
    return prompt


def _one_video(prompt: dict) -> tuple[str, str, int]:
    """Return the ids of the sampler and the conditioning, and the frames of the video."""
    sampler, condition = _only(prompt, "KSampler"), _only(prompt, CONDITIONING)
    frames = prompt[condition]["inputs"]["video_frames"]
    if not isinstance(frames, int) or frames <= OVERLAP:
        raise WorkflowError(f"expected a workflow of more than {OVERLAP} frames, got {frames}.")
    return sampler, condition, frames


def _only(prompt: dict, class_type: str) -> str:
    found = nodes_of(prompt, class_type)
    if len(found) != 1:
        raise WorkflowError(
            f"expected a workflow with one {class_type} to make longer, found {len(found)}."
        )
    return found[0]


def _another_sampler(sampler: dict, part: int, **inputs) -> dict:
    seed = sampler["inputs"]["seed"] + part
    return {**sampler, "inputs": {**sampler["inputs"], "seed": seed, **inputs}}


def _from_batch(images: list, start: int, length: int) -> dict:
    inputs = {"image": images, "batch_index": start, "length": length}
    return {"class_type": "ImageFromBatch", "inputs": inputs}
