"""What ComfyUI sees: one file per node, the adapter that they share, what they draw with."""
