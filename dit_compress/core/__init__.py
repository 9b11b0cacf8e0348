"""The ground of everything else: errors, files, progress, randomness."""
