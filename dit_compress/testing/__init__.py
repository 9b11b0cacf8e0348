"""For plugin authors: tiny real models, and contract classes to run on a plugin."""
