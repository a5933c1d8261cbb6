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


def test_newest_page_shows_picture_motion_and_seed_as_an_app(comfyui_with_newest_page):
    fast = json.loads((WORKFLOWS / "svd_xt_vcut_fast.json").read_text(encoding="utf-8"))
    server = comfyui_with_newest_page
    with placeholder_checkpoints(server), page_of(server, []) as page:
        load_workflow(page, fast)
        command = "window.app.extensionManager.command.execute('Comfy.ToggleLinear')"
        page.evaluate(f"() => {command}")
        for name in ("image", "motion_bucket_id", "seed"):
            page.get_by_text(name, exact=True).first.wait_for()
