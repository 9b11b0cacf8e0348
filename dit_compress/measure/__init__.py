"""Latency, memory, quality, sensitivity."""
