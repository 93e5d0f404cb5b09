"""Runs side by side."""

import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm.commands import compare
from ldm.common.errors import UserError


def make(path: Path, channels: int, losses: list[float], score: float | None = None, seconds: float = 7) -> None:
    """A run's folder as training leaves it; unfinished without a score."""
    path.mkdir(parents=True)
    config = {"name": path.name, "network": {"class": "UNet", "channels": channels}, "seed": 0, "runs_dir": "x"}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [f"{10 * i},{loss},{loss + 1 if i == len(losses) - 1 else ''}" for i, loss in enumerate(losses)]
    (path / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *lines]) + "\n")
    if score is not None:
        (path / "evaluation").mkdir()
        figures = {"FID": score, "seed": 0, "histogram": [1, 2], "recall": {"mean": 0.5, "std": 0.1}}
        (path / "evaluation" / "evaluation.json").write_text(json.dumps(figures))
        (path / "DONE").write_text("")
        start = (path / "config.yaml").stat().st_mtime
        os.utime(path / "DONE", (start, start + seconds))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    make(tmp_path / "ldm/digits/channels-32", 32, [3.0, 2.0], score=11.5)
    make(tmp_path / "ldm/digits/channels-64", 64, [3.0, 1.5, 1.25])
    return tmp_path / "ldm/digits"


def test_a_sweep_stands_for_its_jobs_and_only_what_differs_is_shown(sweep: Path) -> None:
    first, second = compare.rows(compare.read_runs([sweep]))
    assert first == {
        "run": "channels-32",
        "network.channels": "32",
        "steps": "10",
        "train/loss": "2",
        "val/loss": "3",
        "FID": "11.5",
        "seed": "0",
        "recall": "0.5",
        "time": "7 s",
    }
    assert second["val/loss"] == "2.25" and second["FID"] == "-" and second["time"] == "unfinished"


def test_runs_are_named_by_what_tells_them_apart_and_counted_once(sweep: Path, tmp_path: Path) -> None:
    make(tmp_path / "ldm/other", 32, [1.0])
    runs = compare.read_runs([sweep, tmp_path / "ldm/other", sweep / "channels-32"])
    assert [row["run"] for row in compare.rows(runs)] == ["digits/channels-32", "digits/channels-64", "other"]


def test_a_run_that_has_written_nothing_yet_is_shown(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text("seed: 0\n")
    (row,) = compare.rows(compare.read_runs([tmp_path / "new"]))
    assert row == {"run": "new", "steps": "0", "time": "unfinished"}
    compare.plot(compare.read_runs([tmp_path / "new"]))


def test_the_command_prints_the_table_and_writes_the_plot(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(sweep)])
    printed = capsys.readouterr().out
    assert "network.channels" in printed and "channels-64" in printed and "2.25" in printed
    assert Image.open(sweep / "compare.png").size == (1080, 480)


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        compare.read_runs([tmp_path])
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        compare.main([str(tmp_path)])
    with pytest.raises(UserError, match="compare needs runs or sweeps"):
        compare.main([])
