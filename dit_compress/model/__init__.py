"""A model in the engine's words: denoiser, flow, spec, bundle."""
