"""Plugins: what one is, which kinds there are, and how they are found. Imports no torch."""
