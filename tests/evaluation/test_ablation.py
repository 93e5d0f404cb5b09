"""The ablation's table and choice of arms, from results on disk; and five seconds of it for real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation

ROOT = Path(__file__).parents[2]


DISTANCES = {"baseline_lr1e-3": 30.0, "baseline_lr2e-3": 40.0, "edm": 10.0, "flow": 20.0}


def screen(folder: Path, seeds: str) -> dict[str, Any]:
    """The options of a screening, whose results are put into `folder`: one arm has failed."""
    options, _ = ablation.parse([f"runs_dir={folder}", "data=digits", "seconds=5", f"seeds={seeds}"])
    for seed in options["seeds"]:
        for arm, distance in DISTANCES.items():
            figures = {"FD": distance + seed, "KD": 0.1, "precision": 0.5, "recall": 0.4}
            keep(folder, options, arm, seed, **figures, **{"steps trained": 50, "guidance": 2.0})
        keep(folder, options, "broken", seed, error="no finished run")
    return options


def keep(folder: Path, options: dict[str, Any], arm: str, seed: int, **found: Any) -> None:
    result = {"arm": arm, "seed": seed, "seconds": options["seconds"], **found}
    (folder / ablation.file_of(arm, seed, options)).write_text(json.dumps(result))


def test_the_final_takes_the_best_baseline_and_the_best_others(tmp_path: Path) -> None:
    final = screen(tmp_path, "0") | {"stage": "final"}
    assert ablation.chosen_arms(final | {"best": 1}, tmp_path) == ["baseline_lr1e-3", "edm"]
    assert ablation.chosen_arms(final | {"best": 4}, tmp_path) == ["baseline_lr1e-3", "edm", "flow"]
    assert ablation.chosen_arms(final | {"arms": ["flow"]}, tmp_path) == ["flow"]


def test_the_table_has_the_spread_and_the_failures(tmp_path: Path) -> None:
    options = screen(tmp_path, "0,1,2")
    keep(tmp_path, options | {"seconds": 9}, "edm", 0, FD=1.0)  # of another training time: not in the table
    page = tmp_path / "quality.md"
    page.write_text("# Quality\n\nKept.\n")
    for _ in range(2):
        ablation.put(page, "screening", ablation.table(ablation.results(tmp_path, options), options))
    text = page.read_text()
    assert text.startswith("# Quality\n\nKept.\n") and text.count("| edm |") == 1
    assert "| edm | 3 | 50 ± 0 | 2/2/2 | 11 ± 1 |" in text
    assert text.index("| edm |") < text.index("| flow |") < text.index("| baseline_lr1e-3 |")
    assert "| broken | seed 1 failed: no finished run |" in text


def test_an_arm_without_a_run_is_a_failure_not_a_stop(tmp_path: Path) -> None:
    o, _ = ablation.parse([f"runs_dir={tmp_path}", "data=digits"])
    assert ablation.evaluated("edm", 0, (None, None), o)["error"] == "no finished run"  # type: ignore[arg-type]


def test_a_killed_sweep_stops_and_failed_jobs_do_not(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text("import os, sys\nos.kill(os.getpid(), 9) if sys.argv[1] == 'killed' else sys.exit(1)\n")
    with pytest.raises(SystemExit, match="call again"):
        ablation.run(str(script), ["killed"], may_end=(0, 1))
    ablation.run(str(script), ["failed"], may_end=(0, 1))
    with pytest.raises(SystemExit, match="exit code 1"):
        ablation.run(str(script), ["failed"])


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
