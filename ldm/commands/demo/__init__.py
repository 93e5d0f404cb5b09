"""Trains both stages on emoji scenes in minutes, generates images of new captions and scores them.

    ldm demo

`make demo` is the same. It takes no options. Stages that are trained already aren't trained again. The grid shows the
first captions in order, without a choice: a fixed seed draws them from combinations that were kept out of training.
It leaves runs/vae/emoji, runs/ldm/emoji, and in runs/demo the grid, the scores and report.html with all of it.
"""

from ldm.commands.demo.run import main

__all__ = ["main"]
