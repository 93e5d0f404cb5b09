"""`python -m ldm COMMAND`: the same as `ldm COMMAND`."""

from ldm.commands.cli import main

main()
