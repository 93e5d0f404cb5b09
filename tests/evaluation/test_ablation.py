"""The ablation's table, budget and resumption; and five seconds of it for real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, list[str]]]:
    """Training and scoring replaced; the list holds (seed, arms) of each sweep."""
    sweeps: list[tuple[int, list[str]]] = []

    def evaluated(arm: str, seed: int, tables: Any, o: dict[str, Any]) -> dict[str, Any]:
        about = {"arm": arm, "seed": seed, "seconds": o["seconds"]}
        if arm == "broken":
            return about | {"error": "no finished run"}
        distance = {"baseline_lr1e-3": 30.0, "baseline_lr2e-3": 40.0, "edm": 10.0, "flow": 20.0}[arm] + seed
        figures = {"FD": distance, "KD": 0.1, "precision": 0.5, "recall": 0.4, "steps trained": 50, "guidance": 2.0}
        return about | figures

    def train(arms: list[str], seed: int, *rest: Any) -> None:
        sweeps.append((seed, list(arms)))

    monkeypatch.setattr(ablation, "first_stage", lambda o, passed: tmp_path)
    monkeypatch.setattr(ablation, "warm", lambda vae, o: None)
    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "evaluated", evaluated)
    return sweeps


def call(tmp_path: Path, *words: str) -> None:
    ablation.main([f"runs_dir={tmp_path}", "data=digits", "seconds=5", *words])


ARMS = "arms=baseline_lr1e-3,baseline_lr2e-3,edm,flow,broken"


def test_a_finished_arm_is_not_run_again(fake: list, tmp_path: Path) -> None:
    call(tmp_path, "arms=edm,flow")
    call(tmp_path, ARMS)
    assert fake == [(0, ["edm", "flow"]), (0, ["baseline_lr1e-3", "baseline_lr2e-3", "broken"])]


def test_the_budget_bounds_what_is_begun(fake: list, tmp_path: Path) -> None:
    call(tmp_path, ARMS, "budget=16")
    assert fake == [(0, ["baseline_lr1e-3", "baseline_lr2e-3"])]
    call(tmp_path, ARMS, "budget=0")
    assert len(fake) == 1


def test_the_final_takes_the_best_baseline_and_the_best_others(fake: list, tmp_path: Path) -> None:
    call(tmp_path, ARMS)
    call(tmp_path, "stage=final", "seconds=5", "best=1")
    assert fake[1:] == [(seed, ["baseline_lr1e-3", "edm"]) for seed in (0, 1, 2)]


def test_the_table_has_the_spread_and_the_failures(fake: list, tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text("# Quality\n\nKept.\n")
    for _ in range(2):
        call(tmp_path, ARMS, "seeds=0,1,2", f"table={page}")
    text = page.read_text()
    assert text.startswith("# Quality\n\nKept.\n") and text.count("| edm |") == 1
    assert "| edm | 3 | 50 ± 0 | 2/2/2 | 11 ± 1 |" in text
    assert text.index("| edm |") < text.index("| flow |") < text.index("| baseline_lr1e-3 |")
    assert "| broken | seed 1 failed: no finished run |" in text


def test_an_arm_without_a_run_is_a_failure_not_a_stop(tmp_path: Path) -> None:
    o, _ = ablation.parse([f"runs_dir={tmp_path}", "data=digits"])
    assert ablation.evaluated("edm", 0, (None, None), o)["error"] == "no finished run"  # type: ignore[arg-type]


def test_a_killed_sweep_stops_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], -9)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: ended)
    with pytest.raises(SystemExit, match="call again"):
        ablation.run("train_ldm.py", [], may_end=(0, 1))
    ended.returncode = 1
    ablation.run("train_ldm.py", [], may_end=(0, 1))


def test_every_arm_composes() -> None:
    from hydra import initialize_config_dir

    from ldm.config.checking import checked
    from ldm.config.compose import CONF, compose

    arms = sorted(path.stem for path in (ablation.ARMS / "arm").glob("*.yaml"))
    path = f"hydra.searchpath=[file://{ablation.ARMS}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for arm in arms:
            config = checked("train_ldm", *compose("train_ldm", ["data=emoji", f"+arm={arm}", path]))
            assert config["data"]["class"] == "Emoji"
    assert {"baseline_lr4e-3", "baseline_lr1e-3", "baseline_lr2e-3"} < set(arms)


@pytest.mark.slow
def test_five_seconds_an_arm(tmp_path: Path) -> None:
    words = [
        "data=digits",
        f"runs_dir={tmp_path}",
        "arms=baseline_lr1e-3,edm",
        "seconds=5",
        "vae_seconds=5",
        "n=30",
        "tune_n=20",
        "guidances=1,2",
        "features=own",
        f"table={tmp_path / 'quality.md'}",
        "trainer.accelerator=cpu",
        "network=unet",
        "network.channels=[16,16]",
        "diffusion.sampling.steps=4",
    ]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(ROOT / "benchmarks/ablation.py"), *words], check=True, cwd=ROOT, env=here)
    table = (tmp_path / "quality.md").read_text()
    assert "| edm | 1 |" in table and "| baseline_lr1e-3 | 1 |" in table and "failed" not in table
    kept = json.loads((tmp_path / "ablation/digits/screen-5s-edm-0.json").read_text())
    assert kept["FD"] > 0 and kept["guidance"] in (1.0, 2.0) and kept["steps trained"] >= 1
