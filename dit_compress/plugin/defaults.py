"""Names of plugins that the engine uses where no other is named: no other module of the engine names one."""

MODEL = "diffusers"
"""Reads folders of diffusers, and makes its classes."""
VAE, TEXT = "diffusers_vae", "transformers"
"""Read the other parts of a pipeline's folder."""
PRUNE = "trilevel"
"""The step that a call without a recipe takes."""
MODULATION = "modulation"
"""The step that such a call takes for the modulation."""
SEARCH = "magnitude"
PEER = "torch_pruning"
"""The library that ``inspect --peer`` asks; a search has its name."""
SAMPLER = "euler"
TRACKER = "jsonl"
PIPELINE = "diffusers"
"""The export whose files are a pipeline of diffusers."""
ENCODED, VIDEOS = "latents", "videos"
"""The sources that read what ``encode`` writes, and a folder of clips."""

BALANCE = {"block": 8 / 28, "head": 12 / 32, "ffn": 0.25}
"""Granularities a budget may cut, with the shares that the paper removes of them (arXiv 2507.13343v1)."""
LEVELS = tuple(BALANCE)
REHEARSED = {"block": {"remove": 1}, "head": {"remove": 1}, "ffn": {"keep": 0.75}, "width": {"keep": 0.75}}
"""Counts in place of a budget where a recipe is tried on a twin, most of whose weights can stand outside its blocks."""
EXAMPLE_COUNTS, EXAMPLE_STACK, EXAMPLE_SHARES = "block=8,head=12", "block.STACK=3", "ffn=0.75"

DISTILL = "adversarial"
"""Takes a discriminator: what ``new discriminator`` shows."""
REHEARSED_JUDGE = {"use": "dit_block", "frozen_blocks": 1, "learnable_blocks": 1}
"""In place of its own default, which has more blocks than a pruned twin."""
TINY_MODEL, TINY_TEXT, TINY_LATENT = "video_dit", "words", "video_vae"
"""Small enough to be made anew in each test (``dit_compress.testing``)."""
MIXTURE = "mixture"
"""The data whose clips state the mixture that they were drawn from; their truth has it under the same word."""
