"""The edit table on files: weights, LoRAs, pruned folders."""
