"""For plugin authors: tiny real models, a step's world in memory, and contract classes to run on a plugin.

exporters, corpus: ``ExporterContract``, with networks on which exports fail silently.
granularities, searches, latents, distillers, discriminators, transforms: the contract of each kind.
found: whether a plugin is installed. models, steps: what the contracts run on; ``dit-compress new`` uses all.
"""
