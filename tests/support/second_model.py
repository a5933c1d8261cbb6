"""A clone that owns a copy of the model, as newer hosts make for several GPUs and for hooks."""

import copy

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP


def clone_onto_second_model(patcher):
    """What newer hosts do for several GPUs: a clone that owns a copy of the model."""
    callbacks, patcher.callbacks = patcher.callbacks, {}
    clone = ModelPatcher.clone(patcher)
    patcher.callbacks = callbacks
    for kind, by_key in callbacks.items():
        clone.callbacks[kind] = {key: list(functions) for key, functions in by_key.items()}
    config = patcher.model.model_config  # shared: newer hosts' answers any name, __setstate__ too
    clone.model = copy.deepcopy(patcher.model, {id(config): config})
    clone.backup, clone.object_patches_backup = {}, {}
    for callback in patcher.get_all_callbacks(CallbacksMP.ON_CLONE):
        callback(patcher, clone)
    return clone
