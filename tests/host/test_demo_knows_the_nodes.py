"""The demo's list of VCUT nodes, read from source files, is what the running pack offers."""

import asyncio

from comfy_api.latest import io
from private_comfyui import prompts
from vcut.nodes.extension import VCUTExtension


def test_demo_lists_every_node_that_gives_a_model():
    nodes = asyncio.run(VCUTExtension().get_node_list())
    schemas = [node.define_schema() for node in nodes]
    giving = [s for s in schemas if any(isinstance(o, io.Model.Output) for o in s.outputs)]
    taking = [s for s in giving if any(isinstance(i, io.Model.Input) for i in s.inputs)]
    assert sorted(prompts.VCUT_NODES) == sorted(schema.node_id for schema in giving)
    assert sorted(prompts.MODEL_NODES) == sorted(schema.node_id for schema in taking)
    for schema in taking:  # the demo takes such a node out: its input "model" replaces its output 0
        assert "model" in [i.id for i in schema.inputs if isinstance(i, io.Model.Input)]
        assert isinstance(schema.outputs[0], io.Model.Output)
