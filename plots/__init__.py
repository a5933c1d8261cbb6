"""Pictures that the nodes give: plots, captions, videos side by side. Knows nothing of ComfyUI."""
