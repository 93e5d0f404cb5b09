"""The wheel: whole, and enough by itself, in a folder that knows nothing of a clone."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def build(out: Path) -> Path:
    """The wheel of this tree, built by the hatchling that is installed, since no network is to be needed."""
    pytest.importorskip("hatchling")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def install(wheel: Path, target: Path) -> dict[str, str]:
    """The environment of a shell in which the wheel is installed; its dependencies are those of this interpreter."""
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*words, str(wheel)], check=True, capture_output=True)
    path = os.pathsep.join([str(target / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(target), "PATH": path, "LDM_FAST": "2", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("wheel")
    return install(build(folder), folder / "site")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def ldm(words: str, where: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["ldm", *words.split()], cwd=where, env=dict(environment), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_imports_from_the_wheel_and_carries_conf(installed: dict[str, str], empty: Path) -> None:
    code = "import ldm, ldm.config.compose as c; print(ldm.__file__, c.CONF)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=installed, capture_output=True, text=True, check=True
    )
    package, conf = done.stdout.split()
    site = Path(installed["PYTHONPATH"])
    assert Path(package) == site / "ldm" / "__init__.py"
    assert Path(conf) == site / "ldm" / "conf"
    there = {path.relative_to(conf) for path in Path(conf).rglob("*.yaml")}
    assert there == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}


def test_both_stages_from_an_empty_folder(installed: dict[str, str], empty: Path) -> None:
    ldm("train-vae data=digits trainer.max_steps=2", empty, installed)
    ldm("train-ldm data=digits trainer.max_steps=2", empty, installed)
    ldm("sample run=digits labels=[3,7] n=1 out=digits.png", empty, installed)
    ldm("evaluate run=digits", empty, installed)
    assert (empty / "digits.png").is_file()
    assert (empty / "runs/ldm/digits/evaluation/evaluation.json").is_file()
    assert {entry.name for entry in empty.iterdir()} == {"runs", "digits.png", "digits"}


@pytest.mark.parametrize("command", ["train-vae", "train-ldm", "sample", "evaluate"])
def test_help_speaks_of_the_command(installed: dict[str, str], empty: Path, command: str) -> None:
    assert f"usage: ldm {command} " in ldm(f"{command} --help", empty, installed)
