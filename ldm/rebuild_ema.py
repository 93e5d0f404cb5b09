"""`python -m ldm.rebuild_ema`, the former name of `ldm rebuild-ema`."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("rebuild_ema", sys.argv[1:])
