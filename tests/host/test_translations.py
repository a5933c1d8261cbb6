"""Every node is there in every language, and its help pages say what the English ones say."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from vcut.nodes.extension import VCUTExtension

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr", "de", "es")
DOCS = ROOT / "nodes" / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))

FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
HEADING = re.compile(r"^#+ ", re.MULTILINE)
BULLET = re.compile(r"^ *- ", re.MULTILINE)
ROW = re.compile(r"^\|", re.MULTILINE)
LINK = re.compile(r"\]\(([^)]+)\)")
# A number of its own, not that of a name such as fp16; the x of 1024x576 is none.
NUMBER = re.compile(r"(?<![A-WYZa-wyz_\d.,])\d+(?:[.,]\d+)*")
MYRIADS = re.compile(r"(\d+)(?=\s?[\u4e07\u842c\ub9cc])")  # of ten thousand, in Chinese and Korean
MESSAGE_SYNTAX = set("{}@$|%\\")  # the page reads names and tooltips as vue-i18n messages


@pytest.fixture(scope="module")
def schemas() -> dict:
    nodes = asyncio.run(VCUTExtension().get_node_list())
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in nodes)}


def _translation(language: str) -> dict:
    file = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _fields(schema) -> dict:
    """Return which texts a node's translation must have."""
    inputs = {input.id: {"name", "tooltip"} for input in schema.inputs}
    outputs = {}
    for index, output in enumerate(schema.outputs):
        # An output without a name is shown as its type, which ComfyUI itself translates.
        fields = {"name"} if output.display_name else set()
        outputs[str(index)] = fields | ({"tooltip"} if output.tooltip else set())
    return {"inputs": inputs, "outputs": outputs}


def _texts(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for part in value.values() for text in _texts(part)]


def _numbers(text: str) -> Counter:
    """Return how often each number stands in a text, in the English way of writing it."""
    text = MYRIADS.sub(lambda match: f"{int(match[1]) // 100}", text)  # 5000 myriads: 50 million
    return Counter(number.replace(",", ".") for number in NUMBER.findall(text))


def _shape(page: str) -> dict:
    """Return what a page and its translation have in common."""
    text = FENCE.sub("", page)
    return {
        "shown by the node": FENCE.findall(page),
        "ids": Counter(CODE.findall(text)),
        "numbers": _numbers(page),
        "links": LINK.findall(page),
        "headings": len(HEADING.findall(text)),
        "bullets": len(BULLET.findall(text)),
        "rows": len(ROW.findall(text)),
    }


def test_every_language_has_its_folder_and_no_other_is_there():
    assert {folder.name for folder in (ROOT / "locales").iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_translated_and_nothing_else(schemas, language):
    translation = _translation(language)
    there = {
        node_id: {
            "inputs": {name: set(texts) for name, texts in node["inputs"].items()},
            "outputs": {index: set(texts) for index, texts in node["outputs"].items()},
        }
        for node_id, node in translation.items()
    }
    assert there == {node_id: _fields(schema) for node_id, schema in schemas.items()}
    for node in translation.values():
        assert set(node) == {"display_name", "description", "inputs", "outputs"}
        assert node["display_name"].startswith("VCUT ")
    texts = _texts(translation)
    assert all(text.strip() == text != "" for text in texts)
    assert [text for text in texts if MESSAGE_SYNTAX & set(text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_in_descriptions_and_tooltips_are_the_english_ones(schemas, language):
    wrong = []
    for node_id, node in _translation(language).items():
        schema = schemas[node_id]
        pairs = [(schema.description, node["description"])]
        pairs += [(i.tooltip, node["inputs"][i.id]["tooltip"]) for i in schema.inputs]
        for index, output in enumerate(schema.outputs):
            pairs.append((output.tooltip or "", node["outputs"][str(index)].get("tooltip", "")))
        wrong += [here for english, here in pairs if _numbers(english) != _numbers(here)]
    assert wrong == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_help_page_says_what_the_english_one_says(page, language):
    translated = (DOCS / page.stem / f"{language}.md").read_text(encoding="utf-8")
    assert _shape(translated) == _shape(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_names_the_node_and_its_inputs_as_the_node_does(schemas, language):
    for node_id, node in _translation(language).items():
        page = (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")
        # The English name too: it stands in the errors of the node.
        assert page.startswith(f"# {node['display_name']} ({schemas[node_id].display_name})\n")
        inputs = node["inputs"].items()
        names = [texts["name"].removesuffix(f" ({name})") for name, texts in inputs]
        assert [name for name in names if name not in page] == []


def test_no_help_page_is_left_over():
    wanted = {f"{page.stem}/{language}.md" for page in PAGES for language in LANGUAGES}
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.glob("*/*")} == wanted
