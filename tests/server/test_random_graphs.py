"""Random and hostile graphs: a clear error or a result, never a crash, a hang or a stray file.

Examples are derandomized: the same ones in every run, so that a failure is never a coin's toss.
"""

import copy
import itertools
import json
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import hypothesis.configuration
import pytest
import requests
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from private_comfyui import prompts
from private_comfyui.environments import HostError
from private_comfyui.install import WORKFLOWS, current_host
from private_comfyui.serve import ComfyServer

# Not .hypothesis in the folder that the tests are started from.
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "vcut-hypothesis")

WORKFLOW = WORKFLOWS / "svd_vcut.json"
DOCUMENT = json.loads(WORKFLOW.read_text(encoding="utf-8"))
RUN_DEADLINE_S = 60  # a run of the prompts below takes half a second
CPU_LIMIT_S = 5  # turning a workflow into a prompt takes milliseconds
SCHEDULER, PATCH = "VCUT_GuidanceScheduler", "VCUT_PatchSVDModel"
MODEL_SOURCE = next(
    str(node["id"]) for node in DOCUMENT["nodes"] if node["type"] == prompts.STOCK_LOADER
)
DISPLAY_NAMES = {SCHEDULER: "VCUT Guidance Scheduler", PATCH: "VCUT Patch SVD Model"}
MARK = "vcut_stray"
SEEDS = itertools.count(1)  # another one in every run, so that none takes over the last result


def bounded(max_examples: int):
    """Return hypothesis settings for that many examples, the same in every run."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # to shrink a hang would take for ever
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# Values, from what a node expects to what no frontend would send.

numbers = st.one_of(
    st.integers(1, 30),
    st.sampled_from([0, 1, 10000, 10001, -1, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(0, 1000),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0, 1e-300, 1e300]),
)
words = st.one_of(
    st.sampled_from(["cached", "remove", "keep", "average", "positive", "none"]),
    st.sampled_from(["", "17", "nan", "1e400", "Cached", "\x00", "../../x", "%date%", "💥" * 50]),
    st.text(max_size=8),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def _looks_like_link(value) -> bool:
    """Whether ComfyUI takes a list for a link, of which its own worker dies when it is wrapped.

    ``{"__value__": ["x", 0]}`` on any input of any node passes its validation, and its queue then
    stands still. That is before any node runs, so no pack can mend it.
    """
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], (int, float))


# A list is a link to ComfyUI, unless it is wrapped.
wrapped = json_values.filter(lambda value: not _looks_like_link(value)).map(
    lambda value: {"__value__": value}
)
inputs = st.one_of(scalars, numbers, json_values, wrapped)
links = st.tuples(
    st.one_of(st.sampled_from([str(number) for number in range(13)]), st.text(max_size=2)),
    st.one_of(st.integers(0, 3), st.sampled_from([-1, 99, 0.5, None, "0"])),
).map(list)
MISSING = object()


ACTIONS = ("replace", "remove", "double", "exchange")
places = st.integers(0, 999)  # of a document's values, in its own order, again from the start
damages = st.lists(
    st.tuples(st.sampled_from(ACTIONS), places, places, json_values), min_size=1, max_size=4
)


def _damaged(document, damage):
    """Return the document with some of its values replaced, removed, doubled or exchanged."""
    document = copy.deepcopy(document)
    for action, place, other_place, value in damage:
        found = list(_places(document))
        if not found:
            break
        parent, key = found[place % len(found)]
        other, other_key = found[other_place % len(found)]
        if action == "replace":
            parent[key] = value
        elif action == "remove":
            del parent[key]
        elif action == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(other[other_key])
    return document


def _places(value):
    """Yield (container, key) of every value in a JSON document."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


class Quiet(dict):
    """A dict too long to be shown with every failing example."""

    def __repr__(self) -> str:
        return "..."


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return Quiet(server.get("/object_info"))


# What a workflow file may do.


@contextmanager
def _cpu_limit():
    """Fail what computes for too long, each example for itself."""

    def stop(*_):
        raise AssertionError(f"still busy after {CPU_LIMIT_S} s: a hang")

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _prompt_or_refusal(path: Path, object_info: dict) -> dict | None:
    """Return the prompt for a workflow file, None when it is refused in one sentence."""
    try:
        with _cpu_limit():
            prompt = prompts.to_prompt(prompts.load(path), object_info)
    except prompts.WorkflowError as error:
        assert "\n" not in str(error)
        return None
    assert prompts.is_prompt(prompt) or prompt == {}
    return prompt


def _write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "workflow.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


@bounded(300)
@given(damage=damages)
def test_damaged_workflow_becomes_a_prompt_or_a_workflow_error(object_info, tmp_path, damage):
    _prompt_or_refusal(_write(tmp_path, json.dumps(_damaged(DOCUMENT, damage))), object_info)


@bounded(150)
@given(document=json_values)
@example({"nodes": [], "links": []})
@example({"nodes": [{"type": None}], "links": [None], "definitions": None})
@example({"1": {"class_type": "KSampler"}})
def test_other_json_becomes_a_prompt_or_a_workflow_error(object_info, tmp_path, document):
    _prompt_or_refusal(_write(tmp_path, json.dumps(document)), object_info)


@bounded(100)
@given(cut=st.integers(0, 4000), junk=st.binary(max_size=4), rest=st.integers(0, 4000))
def test_damaged_file_becomes_a_prompt_or_a_workflow_error(object_info, tmp_path, cut, junk, rest):
    text = WORKFLOW.read_bytes()
    _prompt_or_refusal(_write(tmp_path, text[:cut] + junk + text[rest:]), object_info)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_deeply_nested_file_is_a_workflow_error(tmp_path, text):
    with pytest.raises(prompts.WorkflowError):
        prompts.load(_write(tmp_path, text))


def test_deeply_nested_input_becomes_a_prompt_or_a_workflow_error(object_info, tmp_path):
    nested = "[" * 600 + "]" * 600
    text = f'{{"1": {{"class_type": "KSampler", "inputs": {{"seed": {nested}}}}}}}'
    _prompt_or_refusal(_write(tmp_path, text), object_info)


@pytest.mark.parametrize(("kind", "mode"), [("Reroute", 0), ("VCUT_PatchSVDModel", 4)])
def test_ring_of_nodes_that_only_pass_on_is_no_hang(object_info, tmp_path, kind, mode):
    def ring_node(number: int, link_in: int, link_out: int) -> dict:
        inputs = [{"name": "model", "type": "MODEL", "link": link_in}]
        outputs = [{"name": "MODEL", "type": "MODEL", "links": [link_out]}]
        rest = {"inputs": inputs, "outputs": outputs, "widgets_values": []}
        return {"id": number, "type": kind, "mode": mode, **rest}

    reader = {"id": 3, "type": PATCH, "inputs": [{"name": "model", "type": "MODEL", "link": 1}]}
    nodes = [ring_node(1, 2, 1), ring_node(2, 1, 2), reader]
    document = {"nodes": nodes, "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 1, 0, "MODEL"]]}
    _prompt_or_refusal(_write(tmp_path, json.dumps(document)), object_info)


EDITS = {
    "replace_loader": lambda prompt: prompts.replace_loader(prompt, "VCUT_LoadTinySVD"),
    "set_inputs": lambda prompt: prompts.set_inputs(prompt, "KSampler", steps=1),
    "without_vcut": prompts.without_vcut,
    "add_counter": prompts.add_counter,
    "add_frames_output": prompts.add_frames_output,
}


@pytest.mark.parametrize("edit", EDITS)
def test_damaged_prompt_is_edited_or_is_a_workflow_error(object_info, tmp_path, edit):
    prompt = prompts.to_prompt(prompts.load(WORKFLOW), object_info)

    @bounded(60)
    @given(damage=damages)
    def check(damage):
        document = _damaged(prompt, damage)
        loaded = _prompt_or_refusal(_write(tmp_path, json.dumps(document)), object_info)
        if loaded is not None:
            try:
                EDITS[edit](loaded)
            except prompts.WorkflowError as error:
                assert "\n" not in str(error)

    check()


# What a server does with a prompt.


@pytest.fixture
def prompt(tiny_prompt) -> dict:
    """The smallest run that reaches every VCUT node: one step, one frame, 64 x 64."""
    prompt = tiny_prompt(WORKFLOW, frames=1, steps=1)
    prompts.set_inputs(prompt, "SVD_img2vid_Conditioning", width=64, height=64)
    for node_id in prompts.nodes_of(prompt, "CreateVideo", "SaveVideo", "VCUT_CountEvaluations"):
        if prompt[node_id]["class_type"] == "VCUT_CountEvaluations":
            (sampler,) = prompts.nodes_of(prompt, "KSampler")
            prompt[sampler]["inputs"]["model"] = prompt[node_id]["inputs"]["model"]
        del prompt[node_id]
    kinds = {"int": "PrimitiveInt", "float": "PrimitiveFloat", "string": "PrimitiveString"}
    for node_id, kind in kinds.items():
        value = {"int": 0, "float": float("nan"), "string": "keep"}[node_id]
        prompt[node_id] = {"class_type": kind, "inputs": {"value": value}}
    return Quiet(prompt)


def _new_run(prompt: dict) -> dict:
    prompt = copy.deepcopy(prompt)
    prompts.set_inputs(prompt, "KSampler", seed=next(SEEDS))
    return prompt


def _queue(server, prompt) -> requests.Response:
    body = json.dumps({"prompt": prompt})  # NaN and Infinity too, as a script would send them
    headers = {"Content-Type": "application/json"}
    return requests.post(server.url + "/prompt", data=body, headers=headers, timeout=RUN_DEADLINE_S)


def _outcome(server, prompt) -> tuple[str, dict]:
    """Queue a prompt and return ("refused", answer), ("failed", error) or ("done", outputs)."""
    answer = _queue(server, prompt)
    if answer.status_code != 200:
        assert answer.status_code in (400, 500), answer.text
        return ("refused", answer.json()) if answer.status_code == 400 else ("host error", {})
    prompt_id = answer.json()["prompt_id"]
    deadline = time.monotonic() + RUN_DEADLINE_S
    while prompt_id not in (history := server.get(f"/history/{prompt_id}")):
        assert time.monotonic() < deadline, f"still running after {RUN_DEADLINE_S} s: a hang"
        server._require_alive()
        time.sleep(0.02)
    entry = history[prompt_id]
    if entry["status"]["status_str"] == "success":
        return "done", entry["outputs"]
    errors = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
    assert len(errors) == 1, entry["status"]
    return "failed", errors[0]


def _has_ring(prompt: dict, node_id=None, path: tuple = ()) -> bool:
    """Whether a node reads from itself. ComfyUI refuses such a graph and names no node."""
    if node_id is None:
        return any(_has_ring(prompt, node_id) for node_id in prompt)
    if node_id in path:
        return True
    sources = [value[0] for value in prompt[node_id]["inputs"].values() if _is_link(value, prompt)]
    return any(_has_ring(prompt, source, (*path, node_id)) for source in sources)


def _is_link(value, prompt: dict) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in list(prompt)


def _require_alive(server) -> None:
    assert server.get("/system_stats")["system"]["comfyui_version"]


wild = st.one_of(inputs, links, st.just(MISSING))
models = st.one_of(st.just([MODEL_SOURCE, 0]), wild)
counts = st.one_of(st.integers(1, 30), st.integers(1, 10000), numbers, wild)
STRATEGIES = {
    (SCHEDULER, "model"): models,
    (SCHEDULER, "cut_step"): counts,
    (SCHEDULER, "steps"): counts,
    (SCHEDULER, "start_step"): counts,
    (SCHEDULER, "cut_sigma"): st.one_of(st.floats(0, 1000), st.sampled_from([700.0, 1]), counts),
    (SCHEDULER, "after_cut"): st.one_of(st.sampled_from(["average", "positive", "none"]), wild),
    (PATCH, "model"): models,
    (PATCH, "temporal"): st.one_of(st.sampled_from(["cached", "remove", "keep"]), wild),
    (PATCH, "spatial"): st.one_of(st.sampled_from(["cached", "keep"]), wild),
}
changes = st.lists(
    st.sampled_from(list(STRATEGIES)).flatmap(lambda p: st.tuples(st.just(p), STRATEGIES[p])),
    min_size=1,
    max_size=3,
    unique_by=lambda change: change[0],
).map(dict)


@bounded(150)
@given(values=changes)
@example({(SCHEDULER, "cut_step"): ["int", 0]})
@example({(SCHEDULER, "cut_sigma"): ["float", 0]})
@example({(SCHEDULER, "cut_sigma"): float("nan")})
@example({(SCHEDULER, "cut_sigma"): "inf"})
@example({(SCHEDULER, "steps"): True, (SCHEDULER, "cut_step"): "10000"})
@example({(PATCH, "model"): None})
@example({(PATCH, "temporal"): {"__value__": ["cached", "remove"]}})
@example({(SCHEDULER, "after_cut"): ["string", 0]})
def test_any_input_of_a_vcut_node_gives_a_picture_or_an_error_that_names_the_node(
    server, prompt, values
):
    prompt = _new_run(prompt)
    for (kind, name), value in values.items():
        (node_id,) = prompts.nodes_of(prompt, kind)
        if value is MISSING:
            del prompt[node_id]["inputs"][name]
        else:
            prompt[node_id]["inputs"][name] = value
    outcome, what = _outcome(server, prompt)
    event(outcome)
    if outcome == "refused":
        named = {node["class_type"] for node in what["node_errors"].values()}
        assert named & set(prompts.VCUT_NODES) or _has_ring(prompt), what
    elif outcome == "failed":
        assert what["node_type"] in prompts.VCUT_NODES, what
        assert what["exception_message"].startswith(DISPLAY_NAMES[what["node_type"]] + ": "), what
    else:
        assert outcome == "done" and what["frames"]["images"]
    _require_alive(server)


@bounded(120)
@given(data=st.data())
def test_rewired_graph_gives_a_picture_or_an_error_that_names_a_node(server, prompt, data):
    prompt = _new_run(prompt)
    for _ in range(data.draw(st.integers(1, 3))):
        node = prompt[data.draw(st.sampled_from(sorted(prompt)))]
        if not node["inputs"]:
            continue
        name = data.draw(st.sampled_from(sorted(node["inputs"])))
        existing = [v for n in prompt.values() for v in n["inputs"].values() if _is_link(v, prompt)]
        other = st.tuples(st.sampled_from(sorted(prompt)), st.integers(0, 2)).map(list)
        node["inputs"][name] = data.draw(st.one_of(st.sampled_from(existing), other))
    outcome, what = _outcome(server, prompt)
    event(outcome)
    if outcome == "refused":
        assert what["error"]["message"]
        assert what["node_errors"] or _has_ring(prompt), what
    elif outcome == "failed":
        assert what["node_type"] and what["exception_message"], what
    _require_alive(server)


@bounded(40)
@given(damage=damages)
def test_damaged_workflow_does_not_stop_the_server(server, object_info, tmp_path, damage):
    document = _damaged(DOCUMENT, damage)
    prompt = _prompt_or_refusal(_write(tmp_path, json.dumps(document)), object_info)
    if prompt is not None:
        _outcome(server, prompt)
    _require_alive(server)


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"1": {"class_type": "no such node", "inputs": {}}},
        {"1": {"class_type": PATCH, "inputs": {}}},
        {"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}},
        {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}},
        {"1": {"class_type": "SaveImage"}},
        {"1": {"class_type": ["SaveImage"], "inputs": {}}},
    ],
    ids=["empty", "unknown", "no output", "no source", "ring", "no inputs", "no name"],
)
def test_prompt_that_no_server_can_run_is_a_host_error(server, prompt):
    with pytest.raises(HostError, match="refused"):
        server.run(prompt)
    _require_alive(server)


@pytest.mark.timeout(90)
def test_queue_that_dies_of_a_wrapped_link_is_a_host_error():
    prompt = {"1": {"class_type": "PreviewAny", "inputs": {"source": {"__value__": ["x", 0]}}}}
    with ComfyServer(current_host()) as server, pytest.raises(HostError, match="queue"):
        server.run(prompt)


# Where a server may write.


def _files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.is_file()}


def _strays(server) -> list[Path]:
    """Return marked files in every folder above the server's output folder, and in ComfyUI's."""
    above = [*(server.folder / "output").parents, server.host.comfyui, Path.cwd(), Path.home()]
    return [path for folder in above for path in folder.glob(f"*{MARK}*")]


@pytest.mark.parametrize(
    "prefix",
    [
        f"../{MARK}",
        f"../../{MARK}",
        f"a/../../{MARK}",
        f"../custom_nodes/VCUT/{MARK}",
        f"../output_{MARK}/x",
        f"/{MARK}",
        f"..\\..\\{MARK}",
        f"%date%/../../{MARK}",
        f"{MARK}\x00",
        f"{MARK}{'x' * 5000}",
        "../" * 40 + f"tmp/{MARK}",
    ],
)
def test_no_file_lands_outside_the_output_folder(server, prompt, prefix):
    prompt["frames"]["inputs"]["filename_prefix"] = prefix
    ours = [path for path in server.folder.iterdir() if path.is_dir() and path.name != "output"]
    before = _files(*ours)
    outcome, what = _outcome(server, prompt)
    assert outcome in ("failed", "done"), what
    if outcome == "failed":
        assert what["node_type"] == "SaveImage"
    assert {path for path in _files(*ours) - before if "__pycache__" not in path.parts} == set()
    assert _strays(server) == []
    _require_alive(server)


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "\x00", "", None, [1]])
def test_picture_that_is_none_is_an_error_that_names_the_loader(server, prompt, name):
    prompts.set_inputs(prompt, "LoadImage")
    (loader,) = prompts.nodes_of(prompt, "LoadImage")
    prompt[loader]["inputs"]["image"] = name
    outcome, what = _outcome(server, prompt)
    if outcome == "refused":
        assert "LoadImage" in {node["class_type"] for node in what["node_errors"].values()}
    else:
        assert outcome == "failed" and what["node_type"] == "LoadImage", what
    _require_alive(server)
