"""The node that prepares the next frames of a video: they begin with the last ones it has."""

from comfy_api.latest import io

from ..comfy_adapter import conds_of_frame, node_id_of, show_on_narrow_node
from ..vcut_core.continuation import latent_to_continue
from .latent_videos import frames_of
from .page_hints import advanced, search_words

DISPLAY_NAME = "VCUT Continue Video"
OVERLAP = 4


class ContinueVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCUT_ContinueVideo",
            display_name=DISPLAY_NAME,
            category="VCUT",
            description=(
                "Makes a video longer than SVD's 14 or 25 frames. The next frames are sampled "
                "while they see the last ones of the video so far, which stay as they are. Sample "
                "them at cfg 1, then join them with VCUT Join Videos."
            ),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="That of the SVD checkpoint."),
                io.Vae.Input("vae", tooltip="That of the SVD checkpoint."),
                io.Latent.Input(
                    "samples",
                    tooltip="The whole video so far: from the sampler, or from VCUT Join Videos.",
                ),
                io.Int.Input(
                    "video_frames",
                    default=14,
                    min=2,
                    max=4096,
                    tooltip="Frames to sample, the overlap included: 14 for SVD, 25 for SVD-XT.",
                ),
                io.Int.Input(
                    "overlap",
                    default=OVERLAP,
                    min=1,
                    max=4095,
                    tooltip="How many of the last frames the new ones see. VCUT Join Videos needs "
                    "the same number.",
                ),
                io.Int.Input(
                    "motion_bucket_id",
                    default=127,
                    min=1,
                    max=1023,
                    tooltip="As for the first video: another one changes the motion at the seam.",
                ),
                io.Int.Input("fps", default=6, min=1, max=1024, tooltip="As for the first video."),
                io.Float.Input(
                    "augmentation_level",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="As for the first video. Above 0 the picture is decoded and encoded "
                    "once more, with noise.",
                    **advanced(),
                ),
                io.Combo.Input(
                    "negative_picture",
                    options=["zero", "keep"],
                    default="zero",
                    tooltip="Only for cfg above 1. zero: the negative has no picture, as in the "
                    "first video. keep: it has the same one, which drifts less.",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(
                    display_name="latent", tooltip="The overlap, held in place, and room after it."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **search_words("svd", "longer", "long video", "extend", "continue"),
        )

    @classmethod
    def execute(
        cls,
        clip_vision,
        vae,
        samples: dict,
        video_frames: int,
        overlap: int,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
        negative_picture: str,
    ) -> io.NodeOutput:
        try:
            video = frames_of(samples, "samples")
            latent, mask = latent_to_continue(video, overlap, video_frames)
        except ValueError as error:
            raise ValueError(f"{DISPLAY_NAME}: {error}.") from None
        motion = {
            "motion_bucket_id": motion_bucket_id,
            "fps": fps,
            "augmentation_level": augmentation_level,
        }
        # The first frame of the overlap carries the motion on; the last one would not.
        positive, negative = conds_of_frame(
            clip_vision, vae, latent[:1], motion, negative_picture == "keep"
        )
        line = f"{overlap} frames kept, {video_frames - overlap} new"
        show_on_narrow_node([line], node_id_of(cls))
        return io.NodeOutput(positive, negative, {"samples": latent, "noise_mask": mask})
