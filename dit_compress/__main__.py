"""``python -m dit_compress``: what torchrun starts, and the same command as ``dit-compress``."""

from dit_compress.cli.app import main

if __name__ == "__main__":
    main()
