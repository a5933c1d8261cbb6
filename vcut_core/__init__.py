"""The VCUT method in plain torch: what a cross-attention becomes, and where guidance ends.

Knows nothing of ComfyUI. Paper: Taghipour et al., "Faster Image2Video Generation: A Closer Look
at CLIP Image Embedding's Impact on Spatio-Temporal Cross-Attentions", arXiv 2407.19205.
"""
