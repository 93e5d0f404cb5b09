"""Sweeps as their users start them: in processes, killed, repeated, searched by Optuna, spread by launchers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "LDM_FAST": "2", "OMP_NUM_THREADS": "1"}
TINY = ["data=digits", "logger=none", "vae.channels=8", "samples.n=1"]
pytestmark = pytest.mark.slow


def sweep(where: Path, *words: str, environment: dict[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
    """A sweep over autoencoders in the folder `where`."""
    command = [sys.executable, str(ROOT / "train_vae.py"), "-m", *TINY, *words]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=1200)


def jobs(where: Path) -> dict[str, float]:
    """The finished jobs and when they ended."""
    return {path.parent.name: path.stat().st_mtime for path in where.glob("runs/vae/digits/*/DONE")}


def test_a_killed_sweep_continues_and_a_repeated_one_skips(tmp_path: Path) -> None:
    words = ["beta=1e-4,1e-3,1e-2"]
    command = [sys.executable, str(ROOT / "train_vae.py"), "-m", *TINY, *words]
    started = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 1200
    while not jobs(tmp_path) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = jobs(tmp_path)
    assert 1 <= len(before) < 3
    again = sweep(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished: nothing to do") == len(before)
    after = jobs(tmp_path)
    assert set(after) == {"beta-0.0001", "beta-0.001", "beta-0.01"}
    assert {name: after[name] for name in before} == before
    third = sweep(tmp_path, *words)
    assert third.stdout.count("is finished: nothing to do") == 3
    assert jobs(tmp_path) == after


def test_optuna_reads_its_objective_from_the_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["sweep=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "objective=PSNR in dB"]
    words.append("optimizer.lr=tag(log,interval(1e-4,1e-2))")
    done = sweep(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    scores = [path for path in tmp_path.glob("runs/vae/digits/*/evaluation/evaluation.json")]
    assert len(scores) == len(jobs(tmp_path)) == 3
    assert "-- best: " in done.stdout
    rates = [yaml.safe_load((path.parents[1] / "config.yaml").read_text())["optimizer"]["lr"] for path in scores]
    assert len(set(rates)) == 3 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    again = sweep(tmp_path, *words)
    assert again.stdout.count("is finished: nothing to do") == 3


@pytest.mark.parametrize("launcher", ["joblib", "local"])
def test_launchers_run_every_job(tmp_path: Path, launcher: str) -> None:
    pytest.importorskip({"joblib": "hydra_plugins.hydra_joblib_launcher", "local": "submitit"}[launcher])
    done = sweep(tmp_path, f"launcher={launcher}", "beta=1e-4,1e-3")
    assert done.returncode == 0, done.stderr
    assert set(jobs(tmp_path)) == {"beta-0.0001", "beta-0.001"}


def test_slurm_gets_a_script_that_asks_for_what_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    (tmp_path / "srun").write_text("#!/bin/sh\n")  # by which submitit knows a cluster
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="train_ldm"):
        words = ["launcher=slurm", "hydra.launcher.partition=a100", "hydra.launcher.mem_gb=32"]
        cfg = compose("train_ldm", words, return_hydra_config=True)
        options = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(options, dict)
    folder = options.pop("submitit_folder")
    assert folder == "runs/submitit/%j"
    executor = submitit.SlurmExecutor(tmp_path, max_num_timeout=options.pop("max_num_timeout"))
    names = {"timeout_min": "time", "name": "job_name", "tasks_per_node": "ntasks_per_node"}
    gigabytes = options.pop("mem_gb")
    options = {names.get(k, k): v for k, v in options.items() if v is not None and k != "_target_"}
    executor.update_parameters(**options, mem=f"{gigabytes}GB")
    script = executor._make_submission_file_text("python train_ldm.py", "0")
    for line in ("--partition=a100", "--gpus-per-node=1", "--cpus-per-task=8", "--time=1440", "--job-name=train_ldm"):
        assert f"#SBATCH {line}" in script
    assert "#SBATCH --signal=USR2@120" in script or "#SBATCH --signal=USR1@120" in script


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\nempty = types.ModuleType('hydra_plugins')\nempty.__path__ = []\n"
        "sys.modules['hydra_plugins'] = empty\n"
    )
    without = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = sweep(tmp_path, "sweep=optuna", "beta=choice(1,2)", environment=without)
    assert done.returncode == 2 and "pip install 'ldm[sweep]'" in done.stderr, done.stderr
