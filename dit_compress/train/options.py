"""Options every training step shares. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options


class TrainOptions(Options):
    """How long and how a step trains. Optimiser: AdamW with fp32 masters; Muon for the blocks' matrices on request."""

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch: int = Field(32, ge=1, description="Samples per step.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate of the main role.")
    muon_lr: float | None = Field(
        None, gt=0, description="Train the matrices inside blocks with Muon at this rate (0.02 is usual); else AdamW."
    )
    warmup: int = Field(50, ge=0, description="Steps over which the rate rises from 0.")
    decay: float = Field(1.0, gt=0, le=1, description="Share of the peak rate left at the end (cosine).")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average that becomes the result; 0 is off.")
    bf16: bool = Field(False, description="Compute in bfloat16 (weights stay float32).")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")


class ProbeOptions(Options):
    """How much data a search looks at, where it measures losses and trains nothing."""

    batches: int = Field(4, ge=1, description="Batches, drawn once; every choice is measured on the same.")
    batch: int = Field(32, ge=1, description="Samples per batch.")
