"""The configs for several processes and machines, as torchrun and SLURM start them; on this machine, on the CPU."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["data=digits", "logger=none", "vae.channels=8", "samples.n=1", "trainer.accelerator=cpu"]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(where: Path, *processes: tuple[Sequence[str], Mapping[str, str]]) -> list[str]:
    """Starts all and waits for all; what each printed, or a failure that shows it."""
    always = {**os.environ, "PYTHONPATH": str(ROOT), "LDM_FAST": "2", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen(list(words), cwd=where, env={**always, **more}, **pipes)  # type: ignore[call-overload]
        for words, more in processes
    ]
    printed = [process.communicate(timeout=1200)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n\n".join(printed)
    return printed


def test_two_machines_by_torchrun(tmp_path: Path) -> None:
    port = free_port()
    given = [*TINY, "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    start += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    script = str(ROOT / "train_vae.py")
    printed = together(tmp_path, *(([*start, f"--node-rank={i}", script, *given], {}) for i in range(2)))
    assert (tmp_path / "runs/vae/digits/DONE").is_file()
    assert sum("2 steps in" in text for text in printed) == 1  # printed once, by the first process


def test_two_tasks_of_slurm(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train_vae.py"), *TINY, "trainer=ddp", "trainer.devices=2", "resume=true"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    together(tmp_path, *((command, {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)))
    assert (tmp_path / "runs/vae/digits/DONE").is_file()
    together(tmp_path, *((command, {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)))
