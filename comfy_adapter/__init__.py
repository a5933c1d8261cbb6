"""Everything that touches ComfyUI's inside, and the only place that imports ``comfy.*``.

A node clones the model and leaves on the clone its frozen settings, one wrapper and one callback,
and for slicing what the clone says that it needs (``apply_technique``). The wrapper creates
everything else when a run starts and discards it when the run ends: the techniques and the wrappers
that feed them (``sampling_run``), and the forwards of the UNet's layers (``unet_in_run``). So there
is no state to reset. Decisions and arithmetic are in ``vcut_core``.
"""

from .animation import save_animation
from .apply_technique import with_technique
from .cost_reading import read_model
from .feedback import (
    listen_to_pages,
    node_id_of,
    page_shows_videos,
    show_on_narrow_node,
    show_on_node,
    with_progress,
)
from .finished_runs import report_of
from .host_model import require_svd
from .img2vid_conds import conds_of_frame
from .loading import checkpoint_names, load_pruned, prune_model
from .pruned_layers import LOADER
from .pruning import PRUNED_MODES
from .video_decode import decode

__all__ = [
    "LOADER",
    "PRUNED_MODES",
    "checkpoint_names",
    "conds_of_frame",
    "decode",
    "listen_to_pages",
    "load_pruned",
    "node_id_of",
    "page_shows_videos",
    "prune_model",
    "read_model",
    "report_of",
    "require_svd",
    "save_animation",
    "show_on_narrow_node",
    "show_on_node",
    "with_progress",
    "with_technique",
]
