"""What `ldm doctor` finds, in folders made for it."""

import tomllib
from pathlib import Path

import pytest
import yaml

from ldm.commands import cli, doctor
from ldm.common.errors import UserError

ROOT = Path(__file__).parents[2]


def make(path: Path, step: int, finished: bool, steps: int = 100) -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": steps}}))
    (path / "metrics.csv").write_text(f"step,train/loss\n{step},1.5\n")
    if finished:
        (path / "DONE").write_text("")


def report(runs_dir: Path) -> str:
    return "\n".join(doctor.report(runs_dir))


def test_an_empty_folder_gets_versions_the_machine_and_a_first_command(tmp_path: Path) -> None:
    text = report(tmp_path / "runs")
    assert f"torch {doctor.torch.__version__.split('+')[0]}" in text
    assert "32-true to train, float32 to generate" in text or "bf16-mixed to train, bfloat16 to generate" in text
    assert "none yet" in text and "ldm train-vae data=digits" in text
    assert not (tmp_path / "runs").exists()


def test_runs_stand_with_their_state_and_the_newest_decides_what_is_next(tmp_path: Path) -> None:
    make(tmp_path / "vae/photos", 100, finished=True)
    assert "ldm train-ldm first_stage=photos name=photos" in report(tmp_path)
    make(tmp_path / "ldm/photos", 40, finished=False)
    text = report(tmp_path)
    assert "ldm/photos  stopped   step 40 of 100" in text and "vae/photos  finished  step 100 of 100" in text
    assert "the command that started ldm/photos, with resume=true" in text
    (tmp_path / "ldm/photos/DONE").write_text("")
    assert "ldm sample run=photos" in report(tmp_path)


def test_extras_are_those_that_a_user_may_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "bench", "browser", "docs"}


def test_a_missing_extra_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "ui", doctor.Extra("no_such_module", "the web page"))
    monkeypatch.setitem(doctor.EXTRAS, "hf", doctor.Extra("no_such.module", "text encoders"))
    assert "pip install 'ldm[ui]'" in report(tmp_path) and "pip install 'ldm[hf]'" in report(tmp_path)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UserError, match="no option 'runs'. Did you mean 'runs_dir'"):
        doctor.main(["runs=x"])


def test_ldm_alone_lists_the_commands_and_points_to_doctor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ldm"])
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[0] for line in lines if line.startswith("  ")]
    assert commands == [name.replace("_", "-") for name in (*cli.WORK, *cli.PLAIN)]
    assert "`ldm doctor`" in lines[-1]
