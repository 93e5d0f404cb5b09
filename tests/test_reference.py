"""The reference is made from configs and docstrings."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "make_reference.py"


def made_anew() -> str:
    """The page as a process makes it that has registered nothing else."""
    code = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['reference']())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_it_holds_every_command_choice_and_class() -> None:
    text = runpy.run_path(str(SCRIPT))["reference"]()
    for file in (ROOT / "conf").glob("*.yaml"):
        assert f"### {file.stem}.py" in text or f"### ldm {file.stem}\n" in text
    for file in (ROOT / "conf").glob("*/*.yaml"):
        assert f"| `{file.stem}` |" in text
    for name in ("UNet", "AutoencoderKL", "Emoji", "LogNormal", "ldm.load", "LatentDiffusion.generate"):
        assert f"**`{name}`**" in text
    assert " object at 0x" not in text


@pytest.mark.slow
def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert made_anew().strip() == page.strip(), "run python docs/make_reference.py"
