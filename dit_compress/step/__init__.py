"""A step's surroundings: inputs, outputs, processes."""
