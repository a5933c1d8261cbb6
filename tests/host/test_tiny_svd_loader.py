"""The demo's weights file when it is missing, damaged, of another layout, or somewhere else."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_svd import loader


@pytest.fixture
def folder(tmp_path):
    """A folder with what the loader reads beside the weights."""
    for name in (loader.VAE_CONFIG, loader.CLIP_VISION_CONFIG, loader.TIME_LAYERS):
        shutil.copy(loader.FOLDER / name, tmp_path)
    return tmp_path


def _sentence(path) -> str:
    with pytest.raises(RuntimeError) as caught:
        loader.load_tiny_svd(path)
    message = str(caught.value)
    start = f"VCUT Load Tiny SVD: expected the tiny SVD weights in {path.name}, could not read them"
    assert message.startswith(start)
    assert message.endswith("). Fetch the file again.")
    assert "\n" not in message and len(message) < 350
    return message


def test_missing_file_is_named_in_one_sentence(folder):
    assert "no such file" in _sentence(folder / "tiny_svd.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 1000, 1_000_000], ids="{} bytes".format)
def test_file_that_ends_early_is_named_in_one_sentence(folder, kept):
    path = folder / "cut_off.safetensors"
    path.write_bytes(loader.WEIGHTS.read_bytes()[:kept])
    _sentence(path)


def test_file_of_something_else_is_named_in_one_sentence(folder):
    path = folder / "page.safetensors"
    path.write_text("<html>404: not found</html>" * 100)
    _sentence(path)


@pytest.mark.parametrize(
    "prefix", [loader.UNET_PREFIX, loader.VAE_PREFIX, loader.CLIP_VISION_PREFIX]
)
def test_file_without_some_of_a_networks_weights_is_named_in_one_sentence(folder, prefix):
    path = folder / "incomplete.safetensors"
    weights = load_file(loader.WEIGHTS)
    for name in sorted(name for name in weights if name.startswith(prefix))[-2:]:
        del weights[name]
    save_file(weights, path)
    _sentence(path)


def test_file_with_a_network_of_another_size_is_named_in_one_sentence(folder):
    path = folder / "other.safetensors"
    weights = load_file(loader.WEIGHTS)
    name = next(name for name in weights if name.startswith(loader.VAE_PREFIX))
    weights[name] = weights[name][:1].clone()
    save_file(weights, path)
    _sentence(path)


def test_missing_time_layers_are_told_in_one_sentence(folder):
    shutil.copy(loader.WEIGHTS, folder / "alone.safetensors")
    (folder / loader.TIME_LAYERS).unlink()
    assert f"no such file: {loader.TIME_LAYERS}" in _sentence(folder / "alone.safetensors")


def test_missing_sizes_beside_the_weights_are_told_in_one_sentence(tmp_path):
    shutil.copy(loader.WEIGHTS, tmp_path / "alone.safetensors")
    assert loader.CLIP_VISION_CONFIG in _sentence(tmp_path / "alone.safetensors")


def test_copy_in_another_folder_loads(folder):
    shutil.copy(loader.WEIGHTS, folder / "copy.safetensors")
    model, _clip_vision, _vae = loader.load_tiny_svd(folder / "copy.safetensors")
    assert sum(p.numel() for p in model.model.diffusion_model.parameters()) > 7e6
