"""Everything that touches ComfyUI's inside, and the only place that imports ``comfy.*``.

A node clones the model and leaves two things on the clone: object patches for the layers, and its
config beside one OUTER_SAMPLE wrapper (``model_patches``). The wrapper makes everything else when a
run starts, in that run's own options, and drops it when the run ends (``sampling_run``). So there
is no state to reset. Decisions and arithmetic live in ``vcut_core``.
"""

from .costing import read_model
from .layers import HostCrossAttention, find_cross_attentions
from .loading import checkpoint_names, load_pruned, prune_model
from .model_patches import patch_cross_attentions, require_svd, schedule_guidance, slice_features
from .node_feedback import show_on_node, with_progress
from .pruning import LOADER, PRUNED_MODES
from .sampling_run import SamplingRun

__all__ = [
    "LOADER",
    "PRUNED_MODES",
    "HostCrossAttention",
    "SamplingRun",
    "checkpoint_names",
    "find_cross_attentions",
    "load_pruned",
    "patch_cross_attentions",
    "prune_model",
    "read_model",
    "require_svd",
    "schedule_guidance",
    "show_on_node",
    "slice_features",
    "with_progress",
]
