"""The method in plain torch: cross-attention, guidance and slicing, and what they cost and save.

Knows nothing of ComfyUI. Paper: Taghipour et al., "Faster Image2Video Generation: A Closer Look
at CLIP Image Embedding's Impact on Spatio-Temporal Cross-Attentions", arXiv 2407.19205.
"""
