"""Pruning without a recipe: ``dit_compress.prune`` and ``load``, the command, pruned folders and their loader."""
