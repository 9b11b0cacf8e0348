"""The parts of each class, read from the sources of diffusers and the sizes in ``models.py``: by hand.

A stack is a list of blocks through which streams run. ``heads``: units of each attention of a block, where query
heads that share a key-value head, and text and image heads of one joint attention, are one unit. ``ffn``: channels
of each feed-forward, where a gate and its value are one. Nothing here is used to prune; the benchmark compares.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS, HEADS, GROUPS = 4, 4, 2


@dataclass(frozen=True)
class Truth:
    """One stack. special: blocks that differ, as ``index → (heads, ffn)``."""

    path: str
    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    length: int = BLOCKS
    special: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()

    def of(self, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the heads and channels of one block."""
        return next(((heads, ffn) for index, heads, ffn in self.special if index == block), (self.heads, self.ffn))


def stack(path: str, heads: list[int], ffn: list[int], length: int = BLOCKS) -> Truth:
    """Return a stack of equal blocks."""
    return Truth(path, tuple(heads), tuple(ffn), length)


def flux_like(
    width: int, *, joint: str = "transformer_blocks", single: str = "single_transformer_blocks"
) -> list[Truth]:
    """Return dual-stream blocks, a feed-forward per stream, then blocks with parallel attention and feed-forward."""
    return [stack(joint, [HEADS], [width, width]), stack(single, [HEADS], [width])]


def refined(width: int) -> list[Truth]:
    """Return the same behind a refiner of the text."""
    return [stack("context_embedder.token_refiner.refiner_blocks", [HEADS], [width], 2), *flux_like(width)]


CROSS = [HEADS, HEADS]
"""Self-attention and cross-attention."""
WAN = [stack("blocks", CROSS, [20])]
EXPERT = 256
"""HiDream: one shared and two routed experts, each with its own gate/value pair; widths round up to 256."""

TRUTH: dict[str, list[Truth]] = {
    "AceStepTransformer1DModel": [stack("layers", [GROUPS, GROUPS], [40])],
    "AllegroTransformer3DModel": [stack("transformer_blocks", CROSS, [192])],
    "AnyFlowTransformer3DModel": WAN,
    "AnyFlowFARTransformer3DModel": WAN,
    "AuraFlowTransformer2DModel": [
        stack("joint_transformer_blocks", [HEADS], [256, 256]),
        stack("single_transformer_blocks", [HEADS], [256]),
    ],
    "BriaTransformer2DModel": flux_like(128),
    "BriaFiboTransformer2DModel": flux_like(128),
    "ChromaTransformer2DModel": flux_like(128),
    "ChronoEditTransformer3DModel": WAN,
    "CogVideoXTransformer3DModel": [stack("transformer_blocks", [HEADS], [128])],
    "CogView3PlusTransformer2DModel": [stack("transformer_blocks", [HEADS], [128])],
    "CogView4Transformer2DModel": [stack("transformer_blocks", [HEADS], [128])],
    "ConsisIDTransformer3DModel": [stack("transformer_blocks", [HEADS], [128])],
    "CosmosTransformer3DModel": [stack("transformer_blocks", CROSS, [96])],
    "Cosmos3OmniTransformer": [stack("layers", [GROUPS], [24, 24])],
    "DiTTransformer2DModel": [stack("transformer_blocks", [HEADS], [64])],
    "EasyAnimateTransformer3DModel": [stack("transformer_blocks", [HEADS], [256, 256])],
    "ErnieImageTransformer2DModel": [stack("layers", [HEADS], [24])],
    "FluxTransformer2DModel": flux_like(128),
    "Flux2Transformer2DModel": flux_like(96),
    "GlmImageTransformer2DModel": [stack("transformer_blocks", [HEADS], [128])],
    "HeliosTransformer3DModel": WAN,
    "HiDreamImageTransformer2DModel": [
        stack("double_stream_blocks", [HEADS], [EXPERT] * 4, 3),
        stack("single_stream_blocks", [HEADS], [EXPERT] * 3, 3),
    ],
    "HunyuanDiT2DModel": [stack("blocks", CROSS, [128])],
    "HunyuanVideoTransformer3DModel": refined(160),
    "HunyuanVideo15Transformer3DModel": [
        stack("context_embedder.token_refiner.refiner_blocks", [HEADS], [128], 2),
        stack("transformer_blocks", [HEADS], [64, 64]),
    ],
    "HunyuanVideoFramepackTransformer3DModel": refined(160),
    "Ideogram4Transformer2DModel": [stack("layers", [HEADS], [24])],
    "JoyImageEditTransformer3DModel": [stack("double_blocks", [HEADS], [256, 256])],
    "JoyImageEditPlusTransformer3DModel": [stack("double_blocks", [HEADS], [256, 256])],
    "Krea2Transformer2DModel": [
        stack("text_fusion.layerwise_blocks", [GROUPS], [16], 2),
        stack("text_fusion.refiner_blocks", [GROUPS], [16], 2),
        stack("transformer_blocks", [GROUPS], [24]),
    ],
    "LatteTransformer3DModel": [
        stack("transformer_blocks", CROSS, [64]),
        stack("temporal_transformer_blocks", [HEADS], [64]),
    ],
    "LongCatAudioDiTTransformer": [stack("blocks", CROSS, [256])],
    "LongCatImageTransformer2DModel": flux_like(128),
    "LTXVideoTransformer3DModel": [stack("transformer_blocks", CROSS, [192])],
    "LTX2VideoTransformer3DModel": [stack("transformer_blocks", [HEADS] * 6, [192, 64])],
    "LuminaNextDiT2DModel": [stack("layers", [GROUPS], [88])],
    "Lumina2Transformer2DModel": [
        stack("noise_refiner", [GROUPS], [128], 2),
        stack("context_refiner", [GROUPS], [128], 2),
        stack("layers", [GROUPS], [128]),
    ],
    "MiniMaxH3Transformer3DModel": [
        stack("token_refiner.refiner_blocks", [HEADS], [20], 2),
        stack("transformer_blocks", [HEADS], [20]),
    ],
    "MiniMaxMusic3Transformer1DModel": [stack("transformer_blocks", [HEADS], [20])],
    "MochiTransformer3DModel": [
        Truth("transformer_blocks", (HEADS,), (85, 42), special=((BLOCKS - 1, (HEADS,), (85,)),))
    ],
    "MotifVideoTransformer3DModel": flux_like(192),
    "NucleusMoEImageTransformer2DModel": [stack("transformer_blocks", [HEADS], [128])],
    "OmniGenTransformer2DModel": [stack("layers", [HEADS], [20])],
    "OvisImageTransformer2DModel": flux_like(128),
    "PixArtTransformer2DModel": [stack("transformer_blocks", CROSS, [64])],
    "PriorTransformer": [stack("transformer_blocks", [HEADS], [128])],
    "PRXTransformer2DModel": [stack("blocks", [HEADS], [112])],
    "QwenImageTransformer2DModel": [stack("transformer_blocks", [HEADS], [256, 256])],
    "SanaTransformer2DModel": [stack("transformer_blocks", CROSS, [40])],
    "SanaVideoTransformer3DModel": [stack("transformer_blocks", CROSS, [120])],
    "SD3Transformer2DModel": [
        Truth(
            "transformer_blocks",
            (HEADS,),
            (128, 128),
            special=((0, (HEADS, HEADS), (128, 128)), (BLOCKS - 1, (HEADS,), (128,))),
        )
    ],
    "SkyReelsV2Transformer3DModel": WAN,
    "StableAudioDiTModel": [stack("transformer_blocks", [HEADS, GROUPS], [64])],
    "StableAudio3DiTModel": [stack("transformer_blocks", CROSS, [64])],
    "TransformerTemporalModel": [stack("transformer_blocks", CROSS, [64])],
    "WanTransformer3DModel": WAN,
    "WanAnimateTransformer3DModel": WAN,
    "WanAnimate2Transformer3DModel": [stack("blocks", CROSS, [40])],
    "WanVACETransformer3DModel": [stack("blocks", CROSS, [20]), stack("vace_blocks", CROSS, [20], 2)],
    "ZImageTransformer2DModel": [
        stack("noise_refiner", [HEADS], [170], 2),
        stack("context_refiner", [HEADS], [170], 2),
        stack("layers", [HEADS], [170]),
    ],
}
"""Class → its stacks. Lists that only feed other blocks (WanAnimate's face adapter) are no stacks."""
