"""Structure of a DiT: what it consists of, what can go, and how it goes."""
