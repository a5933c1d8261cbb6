"""VCUT Compare Videos as ComfyUI runs it: its four outputs, its text on the node, its limits."""

import sys
import weakref

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from PIL import Image, ImageSequence
from torch.utils._python_dispatch import TorchDispatchMode
from vcut.nodes.compare_videos import CompareVideos, for_slider
from vcut.plots.video_pictures import SideBySide


def _compare(a, b, *, labels=("without VCUT", "with VCUT"), gain: float = 4.0) -> tuple:
    return CompareVideos.execute(a, b, *labels, gain).result


def _flat(value: float, frames: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.full((frames, height, width, 3), value)


def test_constant_offset_of_a_tenth_is_20_decibels_and_shows_amplified():
    # MSE 0.01: 10 log10(1 / 0.01) = 20 dB; 0.1 of 255 = 25.5; the difference is 0.1 * 4 = 0.4.
    side_by_side, difference, plot, summary = _compare(_flat(0.5), _flat(0.6))
    assert summary.startswith("2 frames of 64x64: PSNR 20.0 dB, SSIM ")
    assert "Largest error in frame 1: 25.50 of 255 on average" in summary
    assert difference.shape == (2, 64, 64, 3)
    assert torch.allclose(difference, torch.tensor(0.4), atol=1e-5)
    assert plot.shape == (1, 600, 1000, 3)
    # 64 pixels are shown as 256, two of them beside each other with 8 between; text above.
    assert side_by_side.shape[0] == 2 and side_by_side.shape[2:] == (520, 3)
    assert side_by_side[1, -1, 0].tolist() == [0.5] * 3
    assert torch.allclose(side_by_side[1, -1, -1], torch.tensor(0.6))


@pytest.mark.parametrize(("gain", "shown"), [(1.0, 0.1), (4.0, 0.4), (255.0, 1.0)])
def test_difference_is_as_bright_as_the_summary_says(gain, shown):
    _, difference, _, summary = _compare(_flat(0.6), _flat(0.5), gain=gain)
    assert difference.amin().item() == pytest.approx(shown, abs=1e-5)
    assert f"Difference shown {gain:g} times as bright." in summary


def test_equal_videos_are_called_identical_and_their_difference_is_black():
    video = torch.rand(3, 64, 64, 3)
    _, difference, _, summary = _compare(video, video.clone())
    assert summary == "3 frames of 64x64: identical in every pixel."
    assert not difference.any()


def test_videos_of_other_length_size_and_kind_are_compared_and_that_is_said():
    rgba = torch.ones(5, 128, 128, 4)
    _, difference, _, summary = _compare(rgba, _flat(1.0, 3), labels=("long", ""))
    assert difference.shape == (3, 64, 64, 3)
    assert summary.splitlines() == [
        "3 frames of 64x64: identical in every pixel.",
        "long has 5 frames, video_b 3: the first 3 are compared.",
        "long resized from 128x128 to 64x64.",
        "long: transparency left out.",
    ]


@pytest.mark.parametrize(
    ("a", "b", "part"),
    [
        (_flat(0.5), _flat(0.5, 0), "expected at least one frame as video_b, got 0"),
        (_flat(0.5), _flat(0.5, 2, 32, 64), "expected two videos of one size or one shape"),
        (torch.zeros(4, 4), _flat(0.5), r"expected IMAGE .* as video_a, got \(4, 4\)"),
    ],
)
def test_error_is_one_sentence_that_names_the_node(a, b, part):
    with pytest.raises(ValueError, match=f"^VCUT Compare Videos: {part}") as error:
        _compare(a, b)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (63, 33), (257, 301)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_any_size_and_precision_gives_pictures_that_a_video_can_hold(height, width, dtype):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, height, width, 3, generator=generator).to(dtype)
    side_by_side, difference, _, _ = _compare(a, 1 - a)
    assert side_by_side.dtype == difference.dtype == torch.float32
    assert side_by_side.shape[1] % 2 == side_by_side.shape[2] % 2 == 0
    for picture in (side_by_side, difference):
        assert 0 <= picture.min() and picture.max() <= 1


@pytest.mark.parametrize("labels", [("", ""), ("a\nb", "x" * 5000), ("\u4f60\u597d", "\ud800\x00")])
@pytest.mark.filterwarnings("ignore:Glyph")  # where no font with Chinese is installed
def test_any_label_is_drawn(labels):
    side_by_side, _, _, _ = _compare(_flat(0.2), _flat(0.3), labels=labels)
    assert side_by_side.shape[2] == 520 and 256 <= side_by_side.shape[1] < 360


class _LargeTensors(TorchDispatchMode):
    """Keeps every storage of ``video`` bytes, counts tensors of ``frame`` bytes alive at once."""

    def __init__(self, video: int, frame: int) -> None:
        super().__init__()
        self.video, self.frame = video, frame
        self.storages = {}  # by address; kept alive, so that no address is used twice
        self.alive, self.most_alive = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.nbytes >= self.frame:
                self.alive = [ref for ref in self.alive if ref() is not None]
                self.alive.append(weakref.ref(tensor))
                self.most_alive = max(self.most_alive, len(self.alive))
                storage = tensor.untyped_storage()
                if storage.nbytes() >= self.video:
                    self.storages[storage.data_ptr()] = storage
        return output


def test_frames_are_made_one_at_a_time_and_only_what_comes_out_is_as_large_as_a_video():
    # A frame of 256x256 is 0.79 MB, a video of 24 is 18.9 MB; the largest of the rest, the plot,
    # 7.2 MB. Two frames kept of each of 24 pairs would be 48.
    a, b = torch.rand(24, 256, 256, 3), torch.rand(24, 256, 256, 4)
    with _LargeTensors(video=15_000_000, frame=256 * 256 * 3 * 4) as seen:
        side_by_side, difference, _, _ = _compare(a, b)
    made = seen.storages.keys() - {video.untyped_storage().data_ptr() for video in (a, b)}
    assert made == {t.untyped_storage().data_ptr() for t in (side_by_side, difference)}
    assert 2 <= seen.most_alive < 24


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure"])
def test_all_but_plot_and_labels_comes_when_matplotlib_is_missing(monkeypatch, module):
    a, b = _flat(0.5), _flat(0.6, 3)
    _, expected, _, summary = _compare(a, b)
    without_labels = _compare(a, b, labels=("", ""))[0]
    monkeypatch.setitem(sys.modules, module, None)
    side_by_side, difference, plot, text = _compare(a, b)
    *lines, last = text.splitlines()
    assert lines == summary.splitlines()
    assert last.startswith("The plot is blank and the labels are left out because the Python ")
    assert "python -m pip install matplotlib with the Python that runs ComfyUI" in last
    assert torch.equal(difference, expected) and torch.equal(side_by_side, without_labels)
    assert plot.shape == (1, 600, 1000, 3) and (plot == 1).all()


def test_progress_moves_once_a_frame(monkeypatch):
    seen = []
    # Newer hosts leave out what comes within a tenth of a second.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *args, **kw: seen.append(value)
    )
    _compare(_flat(0.2, 3), _flat(0.3, 3))
    assert seen == [1, 2, 3]


def test_comparison_stops_when_the_user_interrupts():
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        _compare(_flat(0.2), _flat(0.3))
    assert _compare(_flat(0.2), _flat(0.3))


def test_inputs_stay_as_they_were():
    a, b = torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64, 3)
    before = a.clone(), b.clone()
    for output in _compare(a, b, gain=1.0)[:3]:
        output.zero_()
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.fixture
def temp_folder(tmp_path):
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path / "not there yet"))
    yield tmp_path / "not there yet"
    folder_paths.set_temp_directory(before)


def _slider(video_a, video_b) -> dict | None:
    """Return what the page's slider is told."""
    side_by_side = SideBySide("VCUT Test", ("a", "b"), *video_a.shape[:3])
    for index, frames in enumerate(zip(video_a, video_b, strict=True)):
        side_by_side.write(index, *frames)
    return for_slider(side_by_side, ("a", "b"))


def test_page_gets_both_videos_in_one_small_file(temp_folder):
    a, b = torch.zeros(3, 576, 1024, 3), torch.ones(3, 576, 1024, 3)
    a[1] = 0.5  # equal frames would be written as one
    videos = _slider(a, b)
    assert videos["file"].items() >= {"subfolder": "", "type": "temp"}.items()
    assert videos["labels"] == ("a", "b") and videos["aspect_ratio"] == pytest.approx(16 / 9)
    with Image.open(temp_folder / videos["file"]["filename"]) as file:
        assert (file.format, file.size, file.n_frames) == ("WEBP", (1024, 288), 3)
        pixels = [
            [frame.convert("RGB").getpixel((x, 200))[0] for x in (0, 511, 512, 1023)]
            for frame in ImageSequence.Iterator(file)
        ]
        assert file.info["duration"] == 167  # of the last frame: a sixth of a second
    assert [frame[0] for frame in pixels] == pytest.approx([0, 128, 0], abs=3)
    assert all(frame[0] == frame[1] and frame[2] == frame[3] == 255 for frame in pixels)


def test_page_gets_no_videos_when_they_cannot_be_written(temp_folder, caplog):
    temp_folder.write_text("a file where the folder should be")
    assert _slider(_flat(0.2), _flat(0.3)) is None
    assert "could not write the preview" in caplog.text
