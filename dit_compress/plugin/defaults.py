"""Plugins that the engine uses where no other is named, and options that it makes small where a recipe is tried.

No other module of the engine names a plugin.
"""

MODEL = "diffusers"
"""Reads folders of diffusers, and makes its classes."""
VAE, TEXT = "diffusers_vae", "transformers"
"""Read the other parts of a pipeline's folder."""
PRUNE = "trilevel"
"""The step that a call without a recipe takes."""
MODULATION = "modulation"
"""The step that such a call takes for the modulation."""
SEARCH, SEARCH_BY_DATA = "magnitude", "taylor"
"""Rank units where there is no data; where there is some, to measure sensitivity: each unit, whatever else stays."""
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
BOUNDS = {
    "accumulate": 1, "batch": 2, "batches": 1, "captions": 1, "checkpoint_every": 2, "critic_warmup": 1,
    "cross_heads": 8, "discriminator_warmup": 1, "ema": 0.2, "evaluations": 2, "every": 1, "ffn": 256, "fit": 2,
    "frozen_blocks": 1, "generator_every": 1, "groups": 1, "head_width": 32, "heads": 8, "hidden": 256, "layers": 8,
    "learnable_blocks": 1, "num_captions": 2, "num_clips": 2, "num_draws": 2, "num_test": 2, "plans": 2,
    "population": 2, "rank": 4, "remove": 1, "runs": 3, "samples": 1, "samples_per_caption": 2, "share_every": 1,
    "steps": 2, "student_every": 1, "teacher_samples": 2, "teacher_steps": 2, "warmup": 0, "widths": 32,
}  # fmt: skip
"""Options by name, and the most that is left of them where a recipe is tried; of lists of numbers, of each."""
UNBOUNDED = "objective"
"""Of a search: it is asked for losses alone, and refuses what would say how long it trains."""
PRESET, TEXT_WIDTH = "preset", "text_width"
"""Of a model that a recipe makes: a size, which is left out there; how wide its captions are, where they are others."""
EXAMPLE_COUNTS, EXAMPLE_STACK, EXAMPLE_SHARES = "block=8,head=12", "block.STACK=3", "ffn=0.75"

DISTILL = "adversarial"
"""Takes a discriminator: what ``new discriminator`` shows."""
REHEARSED_JUDGE = {
    "discriminator": {"use": "dit_block", "frozen_blocks": 1, "learnable_blocks": 1}, "frozen_blocks": None
}  # fmt: skip
"""In place of its own default, which has more blocks than a pruned twin."""
TINY_MODEL, TINY_TEXT, TINY_LATENT = "video_dit", "words", "video_vae"
"""Small enough to be made anew in each test (``dit_compress.testing``)."""
MIXTURE = "mixture"
"""The data whose clips state the mixture that they were drawn from; their truth has it under the same word."""
