"""Pictures that the nodes give: plots, captions, clips side by side. Knows nothing of ComfyUI."""
