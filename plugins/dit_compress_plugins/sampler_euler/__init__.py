"""Euler sampler: straight steps along the velocity."""

from dit_compress.hooks import Options, Plugin, hookimpl


class EulerOptions(Options):
    """Nothing to choose; steps and guidance belong to the bundle's flow settings."""


@hookimpl
def sampler() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="euler",
        options=EulerOptions,
        load="dit_compress_plugins.sampler_euler.sampler:EulerSampler",
        summary="Euler steps, with and without guidance",
    )
