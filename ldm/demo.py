"""`python -m ldm.demo` is `ldm demo` now."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("demo", sys.argv[1:])
