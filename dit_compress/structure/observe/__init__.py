"""Find the structure of a module by watching one call of it."""
