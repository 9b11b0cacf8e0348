"""A step as the engine knows it: what it reads and gives, the processes it runs on."""
