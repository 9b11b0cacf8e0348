"""Training of codecs: the options, losses, objective and step that they share. Imports no torch."""
