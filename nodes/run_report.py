"""The node that gives what a finished run did as a text."""

from comfy_api.latest import io, ui

from ..comfy_adapter import node_id_of, report_of, show_on_node
from .page_hints import search_words

NO_RUN = (
    "No run with VCUT made these samples. Link the LATENT of the sampler itself, and put VCUT's "
    "nodes on the model that it samples."
)


class RunReportNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_RunReport",
            display_name="VCUT Run Report",
            category="VCUT",
            description=(
                "What the sampler's run did, as a text: UNet evaluations, steps, guidance, "
                "seconds, and what VCUT could not save and why."
            ),
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="From the sampler: the report is of the run that made these samples.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report", tooltip="A fact a line, shown on the node too."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            **search_words("svd", "report", "log", "statistics", "speed"),
            is_output_node=True,
            not_idempotent=True,  # each node shows its text, also where two have the same samples
        )

    @classmethod
    def execute(cls, samples: dict) -> io.NodeOutput:
        lines = report_of(samples["samples"], cls) or [NO_RUN]
        show_on_node(lines, node_id_of(cls))
        report = "\n".join(lines)
        return io.NodeOutput(report, ui=ui.PreviewText(report))
