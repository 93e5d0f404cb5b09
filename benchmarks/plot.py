"""Plots what `python -m benchmarks scale` measured: throughput and memory against batch, latents, width and data.

python -m benchmarks.plot [runs/bench.json] [docs/scale.png]
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

# What varies, and how the benchmark names it.
AXES = {
    "images a batch": r"batch (\d+)",
    "side of the latents": r"(\d+)x\d+ latents",
    "width in channels": r"(\d+) channels",
    "cached latents": r"([\d,]+) latents",
}
ROWS = {"images/s": ("images/s",), "memory, MB": ("peak, MB", "RssAnon, MB")}


def series(scale: Mapping[str, Mapping[str, Any]], pattern: str, keys: tuple[str, ...]) -> list[tuple[float, float]]:
    """(what varies, what was measured) of the cases whose name is `pattern`, in order; the first key that they have."""
    points = []
    for name, figures in scale.items():
        key = next((key for key in keys if key in figures), None)
        if (found := re.fullmatch(pattern, name)) and key:
            points.append((float(found[1].replace(",", "")), figures[key]))
    return sorted(points)


def plot(scale: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    figure, panels = plt.subplots(len(ROWS), len(AXES), figsize=(12, 5), layout="constrained", squeeze=False)
    for row, (label, keys) in zip(panels, ROWS.items(), strict=True):
        for panel, (axis, pattern) in zip(row, AXES.items(), strict=True):
            points = series(scale, pattern, keys)
            if not points:
                panel.set_axis_off()
                continue
            panel.plot(*zip(*points, strict=True), marker="o")
            panel.set(xscale="log", xlabel=axis, ylabel=label)
            panel.set_ylim(0, 1.1 * max(y for _, y in points))
            panel.set_xticks([x for x, _ in points], [f"{x:,.0f}" for x, _ in points])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    return figure


def main(words: list[str]) -> None:
    source, out = (*words, *("runs/bench.json", "docs/scale.png")[len(words) :])
    report = json.loads(Path(source).read_text())
    if "scale" not in report:
        sys.exit(f"{source} has no part called scale: run `python -m benchmarks scale out={source}` first.")
    plot(report["scale"]).savefig(out, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1:])
