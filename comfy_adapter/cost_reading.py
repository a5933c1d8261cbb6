"""What VCUT Cost Report reads from a model: its layers' cost, VCUT's settings, other patches.

The given model is only read. Layers are measured on a copy of the UNet that is built from the
model's config on the meta device: no weight is touched, and nothing depends on where the weights
lie, how they are stored, or which clone's patches are on the model now.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.ops
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..vcut_core.calls import Axis
from ..vcut_core.cost_model import UNetCost, measure
from ..vcut_core.cross_attention import CachedCrossAttention, CrossAttentionConfig
from ..vcut_core.feature_slicing import FeatureSlicing, SlicingConfig
from ..vcut_core.guidance_cut import GuidanceCut
from ..vcut_core.run_cost import CostSettings, RunCost
from ..vcut_core.slicing_memory import ActivationPeak
from ..vcut_core.step_cache import StepCache
from .attention_calls import is_answerable
from .host_model import UNET, computing_dtype, planned_object
from .other_patches import EVALUATION_OPTIONS, WRAPPERS_WITHOUT_COST
from .sampling_run import run_facts
from .settings import VCUTSettings, settings_of
from .unet_structure import STACKS, own_modules

PATH = f"{UNET}."
SCHEDULER = "karras"  # of the workflows; only cut_sigma depends on it


@dataclass(frozen=True)
class ModelReading:
    """What a model holds and does.

    parameters: in the UNet as it was loaded. value_bytes: of one number in the dtype it computes
    in. latent_elements: numbers in a latent of the asked size. sigmas: a schedule of the asked
    length. other_patches: what other packs have put on the model. peak: of activations, None where
    nothing is sliced.
    """

    unet: UNetCost
    settings: CostSettings
    parameters: int
    value_bytes: int
    latent_elements: int
    sigmas: tuple[float, ...]
    other_patches: tuple[str, ...]
    peak: ActivationPeak | None

    def run(self) -> RunCost:
        """Return the cost of a run over ``sigmas``."""
        return RunCost(self.unet, self.settings, self.sigmas)

    def cache_bytes(self) -> int:
        """Return the bytes of what VCUT keeps during that run."""
        return self.run().cache_bytes(self.value_bytes, self.latent_elements)


def read_model(model, width: int, height: int, video_frames: int, steps: int) -> ModelReading:
    """Return what ``model`` (ModelPatcher of an SVD) costs in a run. Changes nothing in it.

    width, height: in pixels; the latent has an eighth of them, rounded down as the host does.
    """
    base = model.model
    unet = build_on_meta(base.model_config.unet_config)
    cost = measure_on_meta(unet, width, height, video_frames)
    layers = {path: planned_object(model, PATH + path) for path in cost.cross_attentions()}
    settings = settings_of(model.model_options) or VCUTSettings()
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, steps)
    latent_shape = video_frames, base.latent_format.latent_channels, height // 8, width // 8
    return ModelReading(
        cost,
        CostSettings(
            _answered_layers(model, settings.configs.get(CachedCrossAttention.key), layers),
            settings.configs.get(GuidanceCut.key),
            settings.configs.get(StepCache.key),
            settings.configs.get(FeatureSlicing.key),
        ),
        _count_parameters(model, unet),
        computing_dtype(model).itemsize,
        math.prod(latent_shape),
        tuple(sigmas.tolist()),
        tuple(dict.fromkeys(_other_patches(model, layers))),
        _activation_peak(model, settings.configs.get(FeatureSlicing.key), latent_shape),
    )


def _activation_peak(model, config: SlicingConfig | None, latent_shape) -> ActivationPeak | None:
    """Return what a run that started now would expect."""
    if config is None or config.slices == 1:
        return None
    return FeatureSlicing(config, run_facts(model, latent_shape, model.model_options)).peak()


def _answered_layers(model, config: CrossAttentionConfig | None, layers: dict) -> dict[str, str]:
    """Return path -> "cached" or "remove" of the cross-attentions that ``config`` answers."""
    if config is None:
        return {}
    bypassed = set(_replaced_by_patches(model, layers))
    axes: dict[str, Axis] = {stack: axis for axis, stack in STACKS}
    modes = {
        path: config.mode(next(axes[part] for part in path.split(".") if part in axes))
        for path, layer in layers.items()
        if is_answerable(layer) and path not in bypassed
    }
    return {path: mode for path, mode in modes.items() if mode != "keep"}


class _MetaOperations(comfy.ops.disable_weight_init):
    Linear = torch.nn.Linear  # newer hosts' has no weight before it is loaded, not even on meta


def build_on_meta(unet_config: dict) -> UNetModel:
    """Return the UNet of a config with shapes for weights."""
    config = {**unet_config, "dtype": torch.float32}
    return UNetModel(**config, operations=_MetaOperations, device="meta")


def measure_on_meta(unet: UNetModel, width: int, height: int, video_frames: int) -> UNetCost:
    """Return the cost of one cond's evaluation of ``unet``, which lies on the meta device.

    The embedding is one token, as a single start picture gives.
    """
    layers = dict(unet.named_modules())
    (context_dim,) = {
        layer.to_k.in_features for name, layer in layers.items() if name.endswith("attn2")
    }
    channels = unet.input_blocks[0][0].in_channels

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    inputs = {
        "x": empty(video_frames, channels, height // 8, width // 8),
        "timesteps": empty(video_frames),
        "context": empty(video_frames, 1, context_dim),
        "num_video_frames": video_frames,
        "image_only_indicator": empty(1, video_frames),
        # Products are counted from shapes; the host's own function may not run on meta.
        "transformer_options": {"optimized_attention_override": _attend_without_computing},
    }
    if unet.num_classes is not None:
        inputs["y"] = empty(video_frames, unet.label_emb[0][0].in_features)
    with torch.no_grad():
        return measure(unet, lambda: unet(**inputs))


def _attend_without_computing(_function, q, *_args, **_kwargs) -> torch.Tensor:
    return torch.empty_like(q)


def _count_parameters(model, unet: UNetModel) -> int:
    """Return the parameters that ``model`` was loaded with, whichever clone is on it now.

    Sizes of known weights come from ``unet``: quantised ones may be packed into other shapes.
    """
    whole = dict(unet.named_parameters(prefix=UNET))
    modules = own_modules(model.model.diffusion_model, model.object_patches_backup)
    return sum(
        whole.get(name, parameter).numel()
        for path, module in modules
        for name, parameter in module.named_parameters(prefix=path, recurse=False)
    )


def _replaced_by_patches(model, layers: dict) -> Iterator[str]:
    """Yield the cross-attentions whose forward another pack's attn2 replacement bypasses."""
    options = model.model_options["transformer_options"]
    for key in options.get("patches_replace", {}).get("attn2", {}):
        block = "middle_block" if key[0] == "middle" else f"{key[0]}_blocks.{key[1]}"
        index = f".{key[2]}.attn2" if len(key) > 2 else ".attn2"
        yield from (p for p in layers if p.startswith(f"{block}.") and p.endswith(index))


def _other_patches(model, layers: dict) -> Iterator[str]:
    """Yield what other packs have put on the model that may change what a run costs."""
    options = model.model_options["transformer_options"]
    for wrappers in (model.wrappers, options.get("wrappers", {})):
        for keyed in wrappers.values():
            others = (
                key for key, found in keyed.items() if found and key not in WRAPPERS_WITHOUT_COST
            )
            yield from (f"wrapper {key}" for key in others)
    for name in ("patches", "patches_replace"):
        yield from (kind for kind, found in options.get(name, {}).items() if found)
    yield from (name for name in EVALUATION_OPTIONS if model.model_options.get(name))
    foreign = sum(not is_answerable(layer) for layer in layers.values())
    if foreign:
        yield f"{foreign} cross-attentions of another pack"
