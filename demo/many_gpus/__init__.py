"""Many videos on many GPUs: jobs, the workers that do them, Ray between them, what is told."""
