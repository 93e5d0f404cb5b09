"""`python -m ldm.rebuild_ema` is `ldm rebuild-ema` now."""

from ldm.commands.cli import run_plain

if __name__ == "__main__":
    import sys

    run_plain("rebuild_ema", sys.argv[1:])
