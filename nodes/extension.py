"""The list of nodes that ComfyUI is given."""

from comfy_api.latest import ComfyExtension, io

from .compare_videos import CompareVideos
from .continue_video import ContinueVideo
from .cost_report import CostReport
from .decode_video import DecodeVideo
from .feature_slicer import FeatureSlicer
from .guidance_scheduler import GuidanceScheduler
from .join_videos import JoinVideos
from .load_svd_checkpoint import LoadSVDCheckpoint
from .patch_svd_model import PatchSVDModel
from .run_report import RunReportNode
from .step_cache import StepCacheNode


class VCUTExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            PatchSVDModel,
            GuidanceScheduler,
            StepCacheNode,
            LoadSVDCheckpoint,
            CompareVideos,
            CostReport,
            RunReportNode,
            FeatureSlicer,
            DecodeVideo,
            ContinueVideo,
            JoinVideos,
        ]
