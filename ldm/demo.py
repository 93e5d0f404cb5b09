"""`python -m ldm.demo`, the former name of `ldm demo`."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("demo", sys.argv[1:])
