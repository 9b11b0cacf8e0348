"""Clips, and what is encoded from them."""
