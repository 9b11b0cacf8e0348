"""A recipe becomes finished steps."""
