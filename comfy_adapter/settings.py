"""The settings that nodes leave in a model's options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = "vcut"  # the pack's key for settings, wrappers and callbacks in the host's dictionaries


@dataclass(frozen=True)
class VCUTSettings:
    """The settings of a model.

    configs: technique's key -> its config. node_ids: the same keys -> the node's id in the graph.
    """

    configs: Mapping[str, Any] = field(default_factory=dict)
    node_ids: Mapping[str, str | None] = field(default_factory=dict)


def settings_of(model_options: dict) -> VCUTSettings | None:
    """Return the settings in a model's options, None where there are none."""
    return model_options.get("transformer_options", {}).get(KEY)
