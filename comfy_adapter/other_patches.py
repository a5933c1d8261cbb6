"""Whether another pack works inside of transformer blocks, and inside of which."""

# The host's patches that never reach into one.
OUTSIDE_OF_BLOCKS = {
    "input_block_patch", "input_block_patch_after_skip", "middle_block_after_patch",
    "output_block_patch", "emb_patch",
}  # fmt: skip


def is_patched_inside(
    transformer_options: dict, place: tuple[str, int] | None = None, index: int = 0
) -> bool:
    """Whether a patch, of a kind known here or not, may work inside of a block.

    place: of that block in the UNet, ("input", 1) and its like; None: of any.
    index: of the transformer block there.
    """
    patches = transformer_options.get("patches", {})
    if any(found for kind, found in patches.items() if kind not in OUTSIDE_OF_BLOCKS):
        return True
    replaced = [found for found in transformer_options.get("patches_replace", {}).values() if found]
    if place is None:
        return bool(replaced)
    return any(key in found for found in replaced for key in (place, (*place, index)))
