"""What newer pages show of a workflow as an app."""

import json

import pytest
from comfy_page import load_workflow, page_of, placeholder_checkpoints
from private_comfyui.install import WORKFLOWS

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_app_view_names_inputs_that_are_there_and_the_saved_video(file):
    workflow = json.loads(file.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    view = workflow["extra"]["linearData"]
    assert [nodes[number]["type"] for number in view["outputs"]] == ["SaveVideo"]
    assert len(view["inputs"]) == 3  # the picture, its motion, the seed
    for number, name in view["inputs"]:
        (entry,) = [entry for entry in nodes[number]["inputs"] if entry["name"] == name]
        assert entry["widget"] and entry["link"] is None


def test_newest_page_shows_picture_motion_and_seed_as_an_app(comfyui_with_newest_page, artefacts):
    server = comfyui_with_newest_page
    with placeholder_checkpoints(server), page_of(server, []) as page:
        for name in ("svd_xt_vcut_fast", "svd_compare", "svd_xt_long"):
            load_workflow(page, json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")))
            command = "window.app.extensionManager.command.execute('Comfy.ToggleLinear')"
            page.evaluate(f"() => {command}")
            for label in ("image", "motion_bucket_id", "seed"):
                page.get_by_text(label, exact=True).first.wait_for()
            assert page.get_by_text("value", exact=True).count() == 0
            page.screenshot(path=artefacts / f"app_{name}.png")
