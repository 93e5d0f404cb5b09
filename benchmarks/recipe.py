"""Shared by the benchmarks of quality: training within a budget by the project's own commands, and a report."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.images import grid, save_png


def arguments(about: str | None, seconds: int) -> argparse.Namespace:
    """The command line: a budget in seconds, where runs go, where the report goes, and further options of training."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, nargs="?", default=seconds, help="wall clock for all training together")
    parser.add_argument("--runs", default="runs/benchmarks", help="folder of the runs")
    parser.add_argument("--out", default=None, help="the output image; its figures go beside it as .json")
    parser.add_argument("--n", type=int, default=None, help="images that are scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", default=[], help="further KEY=VALUE of train_ldm.py")
    return parser.parse_intermixed_args()  # options may come before and after flags


def train(script: str, seconds: float, runs: str, *options: str) -> float:
    """Runs `script` for `seconds` of wall-clock time, unless it is finished; returns the seconds that it took."""
    time_limit = f"trainer.max_time=00:00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
    words = [f"runs_dir={runs}", "resume=true", "logger=none", time_limit, *options]
    print(f"$ python {script} {' '.join(words)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    result = subprocess.run([sys.executable, script, *words], stdout=sys.stderr, check=False)
    if result.returncode:
        sys.exit(result.returncode)
    return round(time.monotonic() - started, 1)


def report(figures: dict[str, Any], images: Tensor, columns: int, out: Path) -> None:
    """Prints the figures as JSON and writes them beside a grid of `images` (N, C, H, W)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2)
    save_png(grid(images, columns), out, {"ldm": text})
    out.with_suffix(".json").write_text(text + "\n")
    print(text, flush=True)
