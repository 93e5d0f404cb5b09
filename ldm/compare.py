"""`python -m ldm.compare`, the former name of `ldm compare`."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("compare", sys.argv[1:])
