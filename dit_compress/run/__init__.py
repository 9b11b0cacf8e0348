"""A recipe becomes finished steps: plan, keys, processes, reuse."""
