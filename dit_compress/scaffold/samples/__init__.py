"""One working plugin of each kind, which `dit-compress new` writes under another name."""
