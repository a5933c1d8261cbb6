"""The part of a workflow that makes its video longer: a band below the graph of one video."""

from private_comfyui.long_prompts import OVERLAP

BAND = 980  # pixels: where it stands, below everything else
COLUMN = 310  # from one node to the next
TALL = 180  # a node with room for its line


def add_continuations(
    nodes: list, links: list, count: int, left: int, conditioning: dict, sampler: dict
) -> None:
    """Continue the video of a graph in the form of workflow_layout.layout, ``count`` times.

    left: where the band begins. conditioning, sampler: widget values of the first video's. The
    first nodes are the loader, the picture, guidance, conditioning, sampler and decoder. One node
    sets the motion of all parts.
    """
    loader, guidance, condition, first_sampler, decoder = 0, 2, 3, 4, 5
    motion = {"motion_bucket_id": conditioning["motion_bucket_id"]}
    shared = {name: conditioning[name] for name in ("fps", "augmentation_level")}
    frames = {"video_frames": conditioning["video_frames"]}
    bucket = len(nodes)
    value = {"value": motion["motion_bucket_id"], "control_after_generate": "fixed"}
    nodes.append(["PrimitiveInt", [450, BAND], 280, 0, value, "Motion of all parts"])
    links.append([bucket, 0, condition, "motion_bucket_id"])
    links[:] = [link for link in links if link[2:] != [decoder, "samples"]]
    whole = first_sampler
    for number in range(1, count + 1):
        part, column = len(nodes), left + 3 * COLUMN * (number - 1)
        values = {**frames, "overlap": OVERLAP, **motion, **shared, "negative_picture": "zero"}
        unguided = {**sampler, "seed": sampler["seed"] + number, "cfg": 1.0}
        nodes += [
            ["VCUT_ContinueVideo", [column, BAND], 280, 380, values, f"Part {number + 1}"],
            ["KSampler", [column + COLUMN, BAND], 280, 0, unguided],
            ["VCUT_JoinVideos", [column + 2 * COLUMN, BAND], 280, TALL, {"overlap": OVERLAP}],
        ]
        links += [
            [loader, 1, part, "clip_vision"], [loader, 2, part, "vae"], [whole, 0, part, "samples"],
            [bucket, 0, part, "motion_bucket_id"],
            [guidance, 0, part + 1, "model"], [part, 0, part + 1, "positive"],
            [part, 1, part + 1, "negative"], [part, 2, part + 1, "latent_image"],
            [whole, 0, part + 2, "samples"], [part + 1, 0, part + 2, "continuation"],
        ]  # fmt: skip
        whole = part + 2
    links.append([whole, 0, decoder, "samples"])
