"""The part of a workflow that makes its video longer, and where the first part stands then.

The latent runs straight from part to part. Each sampler stands above it, higher than the one
before, each VCUT Continue Video below it, lower than the one before: so the links from the left
reach them all behind no node.
"""

from private_comfyui.long_prompts import OVERLAP

COLUMN = 310  # pixels from one node to the next
LANE = 320  # where the latent runs
SAMPLER, SAMPLER_STEP = 40, -150  # of the first continuation, and from one to the next
PART, PART_STEP = 600, 390
DECODER = 910  # between two VCUT Continue Video, straight right of the loader
TALL = 180  # a node with room for its line


def add_continuations(
    nodes: list, links: list, count: int, conditioning: dict, sampler: dict
) -> None:
    """Continue the video of a graph in the form of workflow_layout.layout, ``count`` times.

    conditioning, sampler: widget values of the first video's. The first nodes are the loader, the
    picture, guidance, conditioning, sampler, decoder and the video's two. One node sets the motion
    of all parts.
    """
    loader, _, guidance, condition, first_sampler, decoder = range(6)
    motion = {"motion_bucket_id": conditioning["motion_bucket_id"]}
    shared = {name: conditioning[name] for name in ("fps", "augmentation_level")}
    frames = {"video_frames": conditioning["video_frames"]}
    bucket = len(nodes)
    value = {"value": motion["motion_bucket_id"], "control_after_generate": "fixed"}
    nodes.append(["PrimitiveInt", [450, 1020], 280, 0, value, "Motion of all parts"])
    links.append([bucket, 0, condition, "motion_bucket_id"])
    links[:] = [link for link in links if link[2:] != [decoder, "samples"]]
    _make_room(nodes)
    whole, column = first_sampler, nodes[first_sampler][1][0]
    for number in range(count):
        part = len(nodes)
        values = {**frames, "overlap": OVERLAP, **motion, **shared, "negative_picture": "zero"}
        unguided = {**sampler, "seed": sampler["seed"] + number + 1, "cfg": 1.0}
        at = [
            [column + COLUMN + 10, PART + PART_STEP * number],
            [column + 2 * COLUMN + 50, SAMPLER + SAMPLER_STEP * number],
            [column + 3 * COLUMN + 50, LANE],
        ]
        nodes += [
            ["VCUT_ContinueVideo", at[0], 280, 270, values, f"Part {number + 2}"],
            ["KSampler", at[1], 280, 0, unguided],
            ["VCUT_JoinVideos", at[2], 280, TALL, {"overlap": OVERLAP}],
        ]
        links += [
            [loader, 1, part, "clip_vision"], [loader, 2, part, "vae"], [whole, 0, part, "samples"],
            [bucket, 0, part, "motion_bucket_id"],
            [guidance, 0, part + 1, "model"], [part, 0, part + 1, "positive"],
            [part, 1, part + 1, "negative"], [part, 2, part + 1, "latent_image"],
            [whole, 0, part + 2, "samples"], [part + 1, 0, part + 2, "continuation"],
        ]  # fmt: skip
        whole, column = part + 2, at[2][0]
    links.append([whole, 0, decoder, "samples"])
    for number, x, y in ((decoder, 1, 0), (decoder + 1, 2, 0), (decoder + 2, 2, 140)):
        nodes[number][1] = [column + COLUMN * x, DECODER + y]


def _make_room(nodes: list) -> None:
    """Move what makes the first video out of the way of the links to the later parts."""
    loader, picture, _, condition, sampler, *_ = nodes
    loader[1] = [0, DECODER - 80]
    picture[1:3] = [0, 400], 300  # narrow, for newer pages make it higher
    condition[1] = [condition[1][0], 400]
    sampler[1] = [sampler[1][0], LANE]
