"""What ComfyUI sees: one file per node, and the adapter that they share."""
