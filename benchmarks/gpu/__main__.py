"""`make gpu`: the tests of tests/gpu, and a table of networks beside diffusers'. No network, and nothing is installed.

    python -m benchmarks.gpu [tests=270] [table=270] [out=runs/gpu.json]

`tests` and `table` are the seconds of each part: what would begin later is left out and listed. Without a CUDA GPU
both show on a CPU, in less than a minute, that they run. Writes JSON, and Markdown beside it. Exits with 1 where
something failed.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from benchmarks.gpu import report, suite, table  # noqa: E402
from benchmarks.gpu.budget import Budget  # noqa: E402

WITHOUT = {"tests": 25.0, "table": 8.0}  # seconds, on a CPU
WITH = {"tests": 270.0, "table": 270.0}
NEEDS_A_GPU = (
    "CUDA's kernels, autocast and memory; what makes the host wait there; compile=true; pinned memory",
    "the table at full size, eager and compiled",
)


def machine(gpu: bool) -> dict[str, Any]:
    facts = {"torch": torch.__version__, "Python": platform.python_version(), "cores": os.cpu_count()}
    if not gpu:
        return {"gpu": None, **facts}
    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "GB": round(found.total_memory / 1e9, 1), "CUDA": torch.version.cuda, **facts}


def options(words: list[str], gpu: bool) -> tuple[dict[str, float], Path]:
    given: dict[str, Any] = {**(WITH if gpu else WITHOUT), "out": "runs/gpu.json"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in given or not value:
            sys.exit(f"{word}: known are tests=SECONDS, table=SECONDS and out=FILE.json.")
        given[key] = value
    out = Path(given.pop("out"))
    try:
        return {key: float(value) for key, value in given.items()}, out
    except ValueError:
        sys.exit(f"{' '.join(words)}: tests and table are numbers of seconds.")


def collected(seconds: dict[str, float], gpu: bool) -> dict[str, Any]:
    """Everything that is written, with `cut` for what wasn't done."""
    parts = {name: Budget(limit) for name, limit in seconds.items()}
    found: dict[str, Any] = {"machine": machine(gpu), "missing": suite.missing(), "cut": []}
    found["tests"] = suite.run(parts["tests"], gpu)
    parts["table"] = Budget(seconds["table"])  # begins when the tests have ended
    found["table"] = table.run(parts["table"], torch.device("cuda", 0) if gpu else torch.device("cpu"))
    found["cut"] = ([] if gpu else list(NEEDS_A_GPU)) + parts["tests"].cut + parts["table"].cut
    return found


def main(words: list[str]) -> int:
    gpu = torch.cuda.is_available()
    seconds, out = options(words, gpu)
    found = collected(seconds, gpu)
    text = report.markdown(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out} and {out.with_suffix('.md')} are written.", flush=True)
    return 1 if found["tests"].get("failed") or found["table"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
