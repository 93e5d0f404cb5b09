"""Start-up times in seconds: `--help`, `import ldm` beside `import torch`, and `ldm.load` of a model folder."""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.paired import alternate
from benchmarks.vae_step import default_vae
from ldm.artifact import save

ROOT = Path(__file__).parents[1]


def python(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main(rounds: int = 5) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save(default_vae(), Path(folder) / "model")
        calls = {
            "import torch": lambda: python("-c", "import torch"),
            "import ldm": lambda: python("-c", "import ldm"),
            "import ldm, ldm.load": lambda: python("-c", f"import ldm; ldm.load({str(Path(folder) / 'model')!r})"),
            "train_ldm.py --help": lambda: python("train_ldm.py", "--help"),
        }
        seconds = alternate(calls, rounds)
    ratios = {
        name: [a / b for a, b in zip(values, seconds["import torch"], strict=True)] for name, values in seconds.items()
    }
    return {
        name: {"seconds": median(values), "times import torch": median(ratios[name])}
        for name, values in seconds.items()
    }
