"""The nodes as ComfyUI calls them: what they hand on, and the sentence for a wrong input."""

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from vcut.nodes.feature_slicer import FeatureSlicer
from vcut.nodes.guidance_scheduler import GuidanceScheduler
from vcut.nodes.patch_svd_model import PatchSVDModel

SD15_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "adm_in_channels": None,
}
NODES = [
    (FeatureSlicer, "VCUT Feature Slicer", {"slices": 0, "scope": "blocks"}),
    (PatchSVDModel, "VCUT Patch SVD Model", {"temporal": "cached", "spatial": "cached"}),
    (
        GuidanceScheduler,
        "VCUT Guidance Scheduler",
        {"cut_step": 17, "steps": 25, "after_cut": "average", "cut_sigma": 0.0},
    ),
]


@pytest.fixture(scope="module")
def stable_diffusion():
    """A tiny Stable Diffusion 1.5 of ComfyUI's own classes."""
    config = comfy.supported_models.SD15(SD15_UNET)
    model = comfy.model_base.BaseModel(config, device="cpu")
    assert isinstance(model.diffusion_model, UNetModel)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize(("node", "name", "inputs"), NODES)
def test_error_says_what_came_and_what_to_connect_when_the_model_is_not_svd(
    stable_diffusion, node, name, inputs
):
    with pytest.raises(ValueError) as error:
        node.execute(stable_diffusion, **inputs)
    message = str(error.value)
    assert message.startswith(f"{name}: expected a Stable Video Diffusion model, got SD15.")
    assert "Connect MODEL from the Image Only checkpoint loader" in message
    assert stable_diffusion.object_patches == {} and "\n" not in message


@pytest.mark.parametrize(("node", "name", "inputs"), NODES)
def test_error_says_what_to_connect_when_the_input_is_no_model(tiny, node, name, inputs):
    with pytest.raises(ValueError, match=f"{name}: expected .* Connect MODEL from"):
        node.execute(tiny.vae, **inputs)


@pytest.mark.parametrize(("node", "name", "inputs"), NODES)
def test_node_hands_on_a_clone_when_the_model_is_svd(tiny, node, name, inputs):
    options = dict(tiny.model.model_options)
    (output,) = node.execute(tiny.model, **inputs).result
    assert output is not tiny.model and output.model is tiny.model.model
    assert tiny.model.model_options == options and tiny.model.object_patches == {}


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        (PatchSVDModel, {"temporal": "drop", "spatial": "cached"}, "temporal .* got drop"),
        (PatchSVDModel, {"temporal": "cached", "spatial": "remove"}, "spatial .* got remove"),
        (GuidanceScheduler, {"cut_step": 0}, "cut_step from 1 to 10000, got 0"),
        (GuidanceScheduler, {"steps": 10001}, "steps from 1 to 10000, got 10001"),
        (GuidanceScheduler, {"after_cut": "half"}, "after_cut .* got half"),
        (GuidanceScheduler, {"cut_sigma": -1.0}, "cut_sigma .* got -1.0"),
    ],
)
def test_error_names_node_and_input_when_a_setting_is_out_of_range(tiny, node, inputs, message):
    name, defaults = next((name, defaults) for known, name, defaults in NODES if known is node)
    with pytest.raises(ValueError, match=f"^{name}: expected {message}.* in the node"):
        node.execute(tiny.model, **{**defaults, **inputs})
