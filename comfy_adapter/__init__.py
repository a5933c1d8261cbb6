"""Everything that touches ComfyUI's inside, and the only place that imports ``comfy.*``.

A node clones the model and leaves on the clone only its config, one OUTER_SAMPLE wrapper, object
patches for the layers and, for the slicer, what the clone says that it needs (``model_patches``).
The wrapper makes everything else when a run starts and takes it away when the run ends: its state
in the run's own options (``sampling_run``), the blocks' own forwards (``block_forward``). So there
is no state to reset. Decisions and arithmetic live in ``vcut_core``.
"""

from .cost_reading import read_model
from .layers import HostCrossAttention, find_cross_attentions
from .loading import checkpoint_names, load_pruned, prune_model
from .model_patches import patch_cross_attentions, require_svd, schedule_guidance, slice_features
from .node_feedback import node_id_of, show_on_node, with_progress
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
    "node_id_of",
    "patch_cross_attentions",
    "prune_model",
    "read_model",
    "require_svd",
    "schedule_guidance",
    "show_on_node",
    "slice_features",
    "with_progress",
]
