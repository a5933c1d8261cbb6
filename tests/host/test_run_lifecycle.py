"""What a sampling run leaves behind, on success, error and interrupt: its summary, nothing else."""

import copy
import gc
import re
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from vcut.comfy_adapter import feedback, with_technique
from vcut.comfy_adapter.sampling_run import SamplingRun
from vcut.comfy_adapter.unet_in_run import UNetInRun
from vcut.tests.support.summaries import without_seconds
from vcut.vcut_core.cross_attention import AffineOutputCache, CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig


@pytest.fixture(scope="module")
def vcut(biased):
    """Both nodes: cached, cut at step 3 of 4."""
    model = with_technique(biased, CrossAttentionConfig())
    return with_technique(model, GuidanceConfig(3, 4))


@pytest.fixture(scope="module")
def cached(biased):
    return with_technique(biased, CrossAttentionConfig())


def _wrappers(model, kind) -> list:
    return [w for wrappers in model.wrappers.get(kind, {}).values() for w in wrappers]


def _memories() -> list:
    """Return what is alive of any run's memory."""
    gc.collect()
    # By type: isinstance() asks lazy objects of other libraries for their class.
    return [o for o in gc.get_objects() if type(o) in (SamplingRun, AffineOutputCache)]


# --- the unpatched model ----------------------------------------------------------------------


def test_unpatched_model_is_bit_equal_when_vcut_ran_before_it(tiny, unpatched):
    model = with_technique(tiny.model, CrossAttentionConfig("remove"))
    tiny.sample(with_technique(model, GuidanceConfig(17, 25)), steps=25)
    assert torch.equal(tiny.sample(steps=25), unpatched)
    modules = tiny.model.model.modules()
    assert not any("forward" in vars(module) for module in modules)


# --- a second run -----------------------------------------------------------------------------


def test_second_run_is_bit_equal_when_nothing_changed(tiny, vcut):
    assert torch.equal(tiny.sample(vcut, steps=4), tiny.sample(vcut, steps=4))


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"frames": 3}, {"frames": 1}, {"size": 128}], ids=str
)
def test_no_value_is_stale_when_another_picture_frames_or_size_follows(
    tiny, biased, cached, difference, change
):
    tiny.sample(cached, steps=3)
    conditioning = tiny.conditioning(**change)
    reference = tiny.sample(biased, steps=3, conditioning=conditioning)
    output = tiny.sample(cached, steps=3, conditioning=conditioning)
    assert difference(output, reference) < 1e-5


def test_no_value_is_stale_when_another_seed_follows(tiny, biased, cached, difference):
    first = tiny.sample(cached, steps=3)
    reference = tiny.sample(biased, steps=3, seed=9)
    output = tiny.sample(cached, steps=3, seed=9)
    assert difference(output, reference) < 1e-5
    assert difference(output, first) > 1e-3


def test_no_value_is_stale_when_the_same_conditioning_is_sampled_by_another_lora(
    tiny, biased, cached, difference
):
    tiny.sample(cached, steps=3)
    path = tiny.cross_attention_paths("spatial")[0]
    bias = ("diff", (torch.ones(32),))
    changed, reference_model = cached.clone(), biased.clone()
    for model in (changed, reference_model):
        assert model.add_patches({f"{path}.to_out.0.bias": bias})
    reference = tiny.sample(reference_model, steps=3)
    assert difference(tiny.sample(changed, steps=3), reference) < 1e-5


# --- what ends a run --------------------------------------------------------------------------


class HostError(Exception):
    """Any failure within the host."""


INTERRUPT = comfy.model_management.InterruptProcessingException


def _failing(model, error, at_evaluation=3):
    """Return a clone whose third call of the UNet raises: after values were cached, and the cut."""
    calls = []

    def fail(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == at_evaluation:
            raise error
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", fail)
    return clone


@pytest.mark.parametrize("error", [INTERRUPT, HostError])
def test_next_run_is_bit_equal_when_a_run_was_ended_midway(tiny, biased, vcut, error):
    unpatched, expected = tiny.sample(biased, steps=4), tiny.sample(vcut, steps=4)
    options = copy.deepcopy(vcut.model_options)
    with pytest.raises(error):
        tiny.sample(_failing(vcut, error), steps=4)
    assert vcut.model_options == options
    assert torch.equal(tiny.sample(vcut, steps=4), expected)
    assert torch.equal(tiny.sample(biased, steps=4), unpatched)


def test_next_run_is_bit_equal_when_the_interrupt_came_from_a_callback(tiny, vcut):
    expected = tiny.sample(vcut, steps=4)
    positive, negative, latent = tiny.conditioning()
    guider = comfy.samplers.CFGGuider(vcut)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.5)
    options = guider.model_options
    snapshot = copy.deepcopy(options)

    def interrupt(step, denoised, x, total_steps):
        if step == 1:
            raise INTERRUPT

    noise = torch.zeros(latent["samples"].shape)
    sampler = comfy.samplers.sampler_object("euler")
    with pytest.raises(INTERRUPT):
        guider.sample(noise, latent["samples"], sampler, tiny.sigmas(4), callback=interrupt, seed=0)
    assert guider.model_options is options and options == snapshot
    assert torch.equal(tiny.sample(vcut, steps=4), expected)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_nothing_remains_on_the_model_when_a_run_has_ended(tiny, vcut, is_interrupted):
    model = _failing(vcut, INTERRUPT) if is_interrupted else vcut.clone()
    options = copy.deepcopy(model.model_options)
    patches = dict(model.object_patches)
    if is_interrupted:
        with pytest.raises(INTERRUPT):
            tiny.sample(model, steps=4)
    else:
        tiny.sample(model, steps=4)
    assert model.model_options == options
    assert model.object_patches == patches
    assert len(_wrappers(model, WrappersMP.OUTER_SAMPLE)) == 1
    assert _wrappers(model, WrappersMP.CALC_COND_BATCH) == []
    own = [w for w in _wrappers(model, WrappersMP.DIFFUSION_MODEL) if "vcut" in w.__module__]
    assert own == []


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_memory_is_dropped_when_a_run_has_ended(tiny, vcut, is_interrupted):
    alive = []
    model = vcut.clone()

    def look(executor, *args, **kwargs):
        alive.append(len(_memories()))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    if is_interrupted:
        model = _failing(model, INTERRUPT, at_evaluation=2)
    try:
        tiny.sample(model, steps=3)
    except INTERRUPT:
        assert is_interrupted
    assert alive and set(alive) == {2}  # one run and its cache: the test sees what it looks for
    assert _memories() == []


def test_run_goes_without_waiting_for_the_garbage_collector(tiny, vcut):
    model = with_technique(vcut, SlicingConfig(4, "everything"))
    gc.collect()
    gc.disable()
    try:
        tiny.sample(model, steps=2)
        kinds = (SamplingRun, AffineOutputCache, UNetInRun)
        assert [o for o in gc.get_objects() if type(o) in kinds] == []
    finally:
        gc.enable()


def test_loading_error_leaves_nothing_when_the_run_never_began(tiny, vcut, monkeypatch):
    expected = tiny.sample(vcut, steps=4)
    options = copy.deepcopy(vcut.model_options)

    def fail(*args, **kwargs):
        raise HostError

    with monkeypatch.context() as patch, pytest.raises(HostError):
        patch.setattr(comfy.samplers.comfy.sampler_helpers, "prepare_sampling", fail)
        tiny.sample(vcut, steps=4)
    assert vcut.model_options == options
    assert _memories() == []
    assert torch.equal(tiny.sample(vcut, steps=4), expected)


# --- the summary ------------------------------------------------------------------------------


def test_one_line_is_logged_when_a_run_ends(tiny, vcut, summaries):
    tiny.sample(vcut, steps=4)
    tiny.sample(vcut, steps=4)
    assert len(summaries()) == 2
    # Steps 1 and 2 are guided: 2 x 2 + 2 x 1 of 4 x 2. Karras puts step 3 two thirds of the way
    # from 700^(1/7) = 2.5494 to 0.002^(1/7) = 0.4116, and 1.1242^7 = 2.269.
    # 32 layers x (cond with uncond, averaged cond); reused in steps 2 and 4.
    expected = (
        "VCUT: 6 of 8 UNet evaluations; guided 2 of 4 steps; "
        "cross-attention: 64 computed, 64 from cache; cut at step 3 (cut_sigma 2.27); "
        "the cut saved 2 evaluations"
    )
    assert [without_seconds(line) for line in summaries()] == [expected] * 2


def test_nothing_is_logged_when_the_model_is_unpatched(tiny, vcut, summaries):
    tiny.sample(vcut, steps=1)
    tiny.sample(steps=1)
    assert len(summaries()) == 1


def test_summary_says_so_when_a_run_was_stopped(tiny, vcut, summaries):
    with pytest.raises(INTERRUPT):
        tiny.sample(_failing(vcut, INTERRUPT, at_evaluation=4), steps=4)
    (line,) = summaries()
    assert line.startswith("VCUT: stopped early; ") and "guided 2 of 4 steps" in line
    assert "another pack" not in line


@pytest.fixture
def sent(monkeypatch):
    """Put a server at the network's end, the host being real; return what it is asked to send."""
    texts, events = [], []

    class Server:
        client_id = "client"
        prompt_queue = SimpleNamespace(currently_running={})

        def send_progress_text(self, text, node_id, sid=None):
            texts.append((node_id, text))

        def send_sync(self, event, data, sid=None):
            events.append((event, data, sid))

    import server

    monkeypatch.setattr(server.PromptServer, "instance", Server(), raising=False)
    return SimpleNamespace(texts=texts, events=events)


def _with_node_ids(model):
    model = with_technique(model, CrossAttentionConfig(), "7")
    return with_technique(model, GuidanceConfig(3, 4), "8")


def test_each_node_shows_its_own_facts_when_the_host_has_a_server(tiny, biased, sent):
    tiny.sample(_with_node_ids(biased), steps=4)
    assert sent.texts[0] == ("8", "running\nguided 2 of 4 steps")
    shown = {node_id: text.splitlines()[:-1] for node_id, text in sent.texts}
    assert shown == {
        "7": ["cross-attention: 64 computed, 64", "from cache"],  # broken between words
        "8": ["6 of 8 UNet evaluations", "guided 2 of 4 steps"],
    }
    seconds = [text.splitlines()[-1] for _, text in sent.texts[1:]]
    assert all(re.fullmatch(r"\d+\.\d s", line) for line in seconds)


def test_lines_are_sent_for_the_workflow_that_runs(tiny, biased, sent):
    import server

    extra = {"extra_pnginfo": {"workflow": {"id": "the workflow"}}}
    running = {0: (0, "a prompt", {}, extra, [])}
    server.PromptServer.instance.prompt_queue.currently_running = running
    tiny.sample(_with_node_ids(biased), steps=4)
    told = [data for event, data, _ in sent.events if event == "vcut.lines"]
    assert {data["workflow"] for data in told} == {"the workflow"}
    assert told[0] == {
        "workflow": "the workflow", "node": "8", "lines": ["running", "guided 2 of 4 steps"],
    }  # fmt: skip
    assert [(data["node"], "\n".join(data["lines"])) for data in told] == sent.texts


def test_page_that_shows_the_lines_itself_gets_no_other_text(tiny, biased, sent, monkeypatch):
    monkeypatch.setattr(feedback, "_pages", {"client"})
    tiny.sample(_with_node_ids(biased), steps=4)
    assert sent.texts == []
    assert {"vcut.lines", "vcut.run"} <= {event for event, _, _ in sent.events}


def test_counts_are_sent_once_when_a_run_ends(tiny, biased, sent, summaries):
    tiny.sample(_with_node_ids(biased), steps=4)
    ((event, data, client_id),) = [part for part in sent.events if part[0] == "vcut.run"]
    assert (event, client_id) == ("vcut.run", "client")
    assert sorted(data["lines"]) == ["7", "8"]
    assert data["lines"]["8"][:2] == ["6 of 8 UNet evaluations", "guided 2 of 4 steps"]
    assert [f"VCUT: {data['log_line']}"] == summaries()
    counts = data["counts"]
    assert (counts["unet_evaluations"], counts["evaluations_saved"]) == (6, 2)
    attention, guidance = (counts["techniques"][k] for k in ("cross_attention", "guidance"))
    assert (attention["computed"], attention["reused"]) == (64, 64)
    assert (guidance["num_steps"], guidance["last_guided_step"]) == (4, 2)
    assert counts["is_complete"] is True and counts["elapsed_s"] > 0


def test_counts_are_sent_when_a_run_was_stopped(tiny, biased, sent):
    model = _failing(_with_node_ids(biased), INTERRUPT, at_evaluation=4)
    with pytest.raises(INTERRUPT):
        tiny.sample(model, steps=4)
    (data,) = [data for event, data, _ in sent.events if event == "vcut.run"]
    assert data["counts"]["is_complete"] is False
    assert data["log_line"].startswith("stopped early; ")


def test_picture_stays_when_nothing_can_be_sent(tiny, biased, sent, monkeypatch):
    import server

    def fail(*_):
        raise OSError("the page is gone")

    model = _with_node_ids(biased)
    expected = tiny.sample(model, steps=2)
    monkeypatch.setattr(server.PromptServer.instance, "send_sync", fail)
    monkeypatch.setattr(server.PromptServer.instance, "send_progress_text", fail)
    assert torch.equal(tiny.sample(model, steps=2), expected)
