"""Training: one loop, stateless randomness, checkpoints."""
