"""Parameters and multiply-adds (MACs) of a video UNet, layer by layer.

Counted on the module's own layers while somebody runs it once; on the meta device that takes no
memory and no arithmetic. Layers are told apart by the names that latent-diffusion UNets give them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

# What each way of counting adds up. thop is the profiler that the VCUT paper used.
CONVENTIONS = {
    "CL": ("linear",),  # convolutions and linear layers only
    "thop": ("linear", "norm"),  # and 4 operations per element of every affine LayerNorm
    "true": ("linear", "product"),  # and the attention products QK^T and AV
}
COMPONENTS: tuple[str, ...] = (
    "spatial convolution",
    "temporal convolution",
    "self-attention, linear",
    "self-attention, products",
    "cross-attention, linear",
    "cross-attention, products",
    "feed-forward",
    "projections",
    "embeddings",
    "norms",
    "other",
)
EMBEDDING_LAYERS = {"time_embed", "label_emb", "emb_layers", "time_pos_embed"}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.GroupNorm)
QUERY_KEY_VALUE = ("to_q", "to_k", "to_v")
AFFINE_MAP = {"to_v", "to_out"}  # what is left of a cross-attention over one token


@dataclass(frozen=True)
class LayerCost:
    """One layer, or the two products of one attention.

    kind: "linear" (convolution or linear layer), "norm", "product" or "other".
    cross_attention: path of the cross-attention that needs this layer (its norm2 too), or None.
    macs: multiply-adds of all calls while measured; for a LayerNorm thop's operations.
    weight_shape: (out, in, ...) of a linear layer, else ().
    """

    name: str
    component: str
    kind: str
    cross_attention: str | None
    parameters: int
    macs: int
    weight_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class UNetCost:
    """What one evaluation (one cond) of a UNet costs.

    ``replaced`` below maps paths of cross-attentions to "cached" (an affine map, evaluated once a
    run) or "remove"; neither costs anything in an evaluation, norm2 included.
    """

    layers: tuple[LayerCost, ...]

    def cross_attentions(self) -> dict[str, str]:
        """Return path -> "spatial" or "temporal" of every cross-attention."""
        paths = {layer.cross_attention: None for layer in self.layers if layer.cross_attention}
        return {p: "temporal" if "time_stack" in p.split(".") else "spatial" for p in paths}

    def macs(self, convention: str, replaced: Iterable[str] = ()) -> int:
        """Return the MACs of one evaluation by one of ``CONVENTIONS``."""
        return sum(self.macs_by_component(convention, replaced).values())

    def macs_by_component(self, convention: str, replaced: Iterable[str] = ()) -> dict[str, int]:
        """Return the MACs of one evaluation for each of ``COMPONENTS``."""
        totals = dict.fromkeys(COMPONENTS, 0)
        for layer in self._layers_without(replaced):
            if layer.kind in CONVENTIONS[convention]:
                totals[layer.component] += layer.macs
        return totals

    def parameters(self) -> int:
        """Return the number of parameters of the whole UNet."""
        return sum(layer.parameters for layer in self.layers)

    def parameters_by_component(self) -> dict[str, int]:
        """Return the number of parameters for each of ``COMPONENTS``."""
        totals = dict.fromkeys(COMPONENTS, 0)
        for layer in self.layers:
            totals[layer.component] += layer.parameters
        return totals

    def parameters_needed(self, replaced: Mapping[str, str], keep_maps: bool = True) -> int:
        """Return how many parameters can still change the picture.

        keep_maps: count to_v and to_out of cached cross-attentions; False: only their outputs are
        kept.
        """
        maps = [path for path, mode in replaced.items() if mode == "cached" and keep_maps]
        kept = sum(layer.parameters for layer in self._affine_layers(maps))
        return sum(layer.parameters for layer in self._layers_without(replaced)) + kept

    def affine_macs(self, paths: Iterable[str]) -> int:
        """Return the MACs of evaluating the affine maps of ``paths`` for one embedding."""
        sizes = (layer.weight_shape for layer in self._affine_layers(paths))
        return sum(rows * columns for rows, columns in sizes)

    def affine_elements(self, paths: Iterable[str]) -> int:
        """Return how many numbers the affine maps of ``paths`` give for one embedding."""
        layers = self._affine_layers(paths)
        return sum(layer.weight_shape[0] for layer in layers if _has(layer.name, "to_out"))

    def _layers_without(self, replaced: Iterable[str]) -> list[LayerCost]:
        gone = set(replaced)
        return [layer for layer in self.layers if layer.cross_attention not in gone]

    def _affine_layers(self, paths: Iterable[str]) -> list[LayerCost]:
        wanted = set(paths)
        return [
            layer
            for layer in self.layers
            if layer.cross_attention in wanted and _has(layer.name, *AFFINE_MAP)
        ]


def measure(unet: nn.Module, evaluate: Callable[[], object]) -> UNetCost:
    """Return the cost of what ``evaluate`` runs of ``unet``: one evaluation of one cond.

    Puts forward hooks on the layers for as long as ``evaluate`` runs. Linear layers must be called,
    so attention functions may be any: products are counted from the shapes of q, k and v.
    """
    macs: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, module in unet.named_modules():
        if (hook := _hook_for(name, module, macs, shapes)) is not None:
            hooks.append(module.register_forward_hook(hook))
    try:
        evaluate()
    finally:
        for hook in hooks:
            hook.remove()
    return UNetCost(tuple(_layer_costs(unet, macs)))


def _hook_for(name: str, module: nn.Module, macs: Counter, shapes: dict) -> Callable | None:
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return partial(_count_linear, name, macs, shapes)
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        return partial(_count_norm, name, macs)
    return partial(_count_products, name, macs, shapes) if _is_attention(module) else None


def _count_linear(name, macs, shapes, module, _inputs, output) -> None:
    macs[name] += output.numel() * module.weight.shape[1:].numel()
    shapes[name] = tuple(output.shape)


def _count_norm(name, macs, _module, inputs, _output) -> None:
    macs[name] += 4 * inputs[0].numel()


def _count_products(name, macs, shapes, _module, _inputs, _output) -> None:
    # (B, S, C) queries with (B, L, C) keys, then (B, S, L) weights with (B, L, C) values
    (rows, queries, _), (_, tokens, key_width), (_, _, value_width) = (
        shapes[f"{name}.{part}"] for part in QUERY_KEY_VALUE
    )
    macs[name] += rows * queries * tokens * (key_width + value_width)


def _layer_costs(unet: nn.Module, macs: Counter) -> Iterable[LayerCost]:
    attentions = {name for name, module in unet.named_modules() if _is_attention(module)}
    for name, module in unet.named_modules():
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if not parameters and name not in attentions:
            continue
        kind = _kind(module)
        shape = tuple(module.weight.shape) if kind == "linear" else ()  # pyright: ignore[reportArgumentType]
        owner = _cross_attention_of(name, attentions)
        component = _component(name, module, kind)
        yield LayerCost(name, component, kind, owner, parameters, macs[name], shape)


def _kind(module: nn.Module) -> str:
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return "linear"
    if isinstance(module, NORMS):
        return "norm"
    return "product" if _is_attention(module) else "other"


def _component(name: str, module: nn.Module, kind: str) -> str:
    if kind == "norm":
        return "norms"
    part = "products" if kind == "product" else "linear"
    if _has(name, "attn1"):
        return f"self-attention, {part}"
    if _has(name, "attn2"):
        return f"cross-attention, {part}"
    if _has(name, "ff", "ff_in"):
        return "feed-forward"
    if _has(name, "proj_in", "proj_out"):
        return "projections"
    if _has(name, *EMBEDDING_LAYERS):
        return "embeddings"
    if isinstance(module, CONVOLUTIONS):
        return "temporal convolution" if _has(name, "time_stack") else "spatial convolution"
    return "other"


def _cross_attention_of(name: str, attentions: set[str]) -> str | None:
    """Return the path of the attn2 that needs the layer ``name``: its own parts and norm2."""
    block, _, last = name.rpartition(".")
    if last == "norm2":
        name = f"{block}.attn2"
    while name and name not in attentions:
        name = name.rpartition(".")[0]
    return name if name.rpartition(".")[2] == "attn2" else None


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, part) for part in QUERY_KEY_VALUE)


def _has(name: str, *parts: str) -> bool:
    return not set(parts).isdisjoint(name.split("."))
