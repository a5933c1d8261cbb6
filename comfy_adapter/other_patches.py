"""What is known of other packs: where their patches work, which wrappers are harmless."""

from .settings import KEY

# Wrappers of others that sit between the conds and attn2 and leave the embedding as it is.
KNOWN_WRAPPERS = {KEY, "easycache", "lazycache", "torch.compile"}
WRAPPERS_WITHOUT_COST = {KEY, "torch.compile"}  # they leave the count of layers as it is
# What other packs leave in model_options that may evaluate the UNet more or less often.
EVALUATION_OPTIONS = (
    "model_function_wrapper",
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)

# The host's patches that never reach into one.
OUTSIDE_OF_BLOCKS = {
    "input_block_patch", "input_block_patch_after_skip", "middle_block_after_patch",
    "output_block_patch", "emb_patch",
}  # fmt: skip


def step_cache_of_another_pack(transformer_options: dict) -> str | None:
    """Return the key of another pack's wrapper that skips steps, by its name; None: there is none.

    Two caches that predict from each other's predictions drift.
    """
    wrappers = transformer_options.get("wrappers", {}).values()
    keys = (key for keyed in wrappers for key, found in keyed.items() if found and key != KEY)
    return next((key for key in keys if "cache" in str(key).lower()), None)


def has_only_own_wrapper(kind: str, transformer_options: dict) -> bool:
    """Return whether nobody but VCUT has a wrapper of a kind here."""
    wrappers = transformer_options.get("wrappers", {}).get(kind, {})
    return all(key == KEY for key, found in wrappers.items() if found)


def is_patched_inside(
    transformer_options: dict, place: tuple[str, int] | None = None, index: int = 0
) -> bool:
    """Return whether a patch, of a kind known here or not, may work inside of a block.

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
