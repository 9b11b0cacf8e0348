"""What a step is given, and what it gives."""
