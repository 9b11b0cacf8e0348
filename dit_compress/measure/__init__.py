"""Measurements: latency, memory, quality, sensitivity."""
