"""Causal codecs in tensors of rank 4: rows, layers, chunks that carry state, tiles that join."""
