"""A ComfyUI for the demo and the tests: installed, launched, served, and given prompts."""
