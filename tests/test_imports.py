"""Imports run one way, and `import ldm` stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_contracts_in_pyproject_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ldm", {"lightning", "hydra", "omegaconf", "torchvision", "tokenizers", "matplotlib", "sklearn"}),
        ("ldm.commands.cli", {"torch", "lightning"}),
    ],
)
def test_a_module_imports_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
