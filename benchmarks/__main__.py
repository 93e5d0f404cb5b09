"""`make bench`: the benchmarks of speed and memory, which need no trained run.

    python -m benchmarks [unet_step,vae_step,...] [out=bench.json] [rounds=5] ...

All compare in one process, in turn, by the median of paired ratios; "diffusers / ours" is how many times longer
diffusers takes, and beside it stand the least and the most of all rounds. Prints a table for each and writes JSON.
Further options go to the benchmarks that know them.
"""

import importlib
import inspect
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import peak_flops, table

NAMES = ("unet_step", "vae_step", "stage_two", "sampling", "distilled", "saving", "start_up", "memory", "scale")


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "peak of a float32 product, GFLOP/s": peak_flops() / 1e9,
    }


def options(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The benchmarks that are named, else all of them, and KEY=VALUE."""
    names = [name for word in words if "=" not in word for name in word.split(",")]
    if unknown := [name for name in names if name not in NAMES]:
        sys.exit(f"there is no benchmark called {unknown[0]}: choose among {', '.join(NAMES)}.")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    return names or list(NAMES), {key: int(v) if v.isdigit() else v for key, v in given.items()}


def main(words: list[str]) -> None:
    names, given = options(words)
    out = Path(given.pop("out", "runs/bench.json"))
    chosen = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    known = {name: set(inspect.signature(module.main).parameters) for name, module in chosen.items()}
    if unknown := set(given) - set().union(*known.values()):
        sys.exit(f"none of {', '.join(names)} has the option {', '.join(sorted(unknown))}.")
    report: dict[str, Any] = {"machine": machine()}
    print(json.dumps(report["machine"]), flush=True)
    for name, module in chosen.items():
        report[name] = module.main(**{key: value for key, value in given.items() if key in known[name]})
        print(f"\n## {name}\n\n{inspect.getdoc(module)}\n\n{table(report[name])}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
