"""`python -m ldm.compare` is `ldm compare` now."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("compare", sys.argv[1:])
