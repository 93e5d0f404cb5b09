"""Tiny runs of both stages, in this process or in one that may be killed."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ldm.commands import cli
from ldm.common.registry import register
from ldm.data.storage.table import Table
from ldm.images import Preprocess

SMALL = [
    "logger=none",
    "batch_size=8",
    "samples.every_n_steps=0",
    "samples.n=1",
    "checkpoint.every_n_steps=2",
    "trainer.val_check_interval=4",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "optimizer.warmup_steps=2",
    "data.class=Squares",
    "data.n=60",
]
STAGE = {
    "vae": ["vae.channels=8", "vae.multipliers=[1,1]", "vae.latent_channels=2", "vae.stem=2", "vae.shortcut=false"],
    "ldm": [
        "network=unet",
        "network.channels=[8,8]",
        "network.attention=[false,true]",
        "network.dropout=0.1",
        "diffusion.sampling.steps=2",
    ],
}


@register
class Squares:
    """Grey noise with a class and a caption: a source that costs nothing."""

    name, default_condition = "squares", "label"

    def __init__(self, n: int = 60, seed: int = 0):
        self.n, self.seed = n, seed

    def tables(self, cache: Path) -> tuple[Table, Table]:
        random = np.random.default_rng(self.seed)
        images = random.integers(0, 256, (self.n + 8, 1, 8, 8), np.uint8)
        labels, names = np.arange(self.n + 8) % 3, [f"{i}.png" for i in range(self.n + 8)]
        texts = [f"a square of class {'abc'[i % 3]}" for i in range(self.n + 8)]
        pre = Preprocess(1, 8, 8)
        parts = (slice(self.n), f"squares-{self.n}-{self.seed}"), (slice(self.n, None), "squares-val")
        made = [
            Table(images[s], {"label": labels[s], "text": texts[s]}, pre, key, names[s], ("a", "b", "c"))
            for s, key in parts
        ]
        return made[0], made[1]


def train(stage: str, *words: str) -> None:
    """One run by its command line, in this process."""
    script = f"train_{stage}"
    own_data = any(word.startswith("data=") for word in words)
    small = [word for word in SMALL if not (own_data and word.startswith("data."))]
    words = (*small, *STAGE[stage], *words)
    argv, sys.argv = sys.argv, [f"{script}.py", *words]
    try:
        cli.run(script, list(words))
    finally:
        sys.argv = argv


def forked(work: Callable[[], object], output: Path | None = None) -> int:
    """Exit code of a process of its own that does `work`, as a shell would give it; what it prints goes to `output`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            if output:
                handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            work()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def checkpoint(run: Path, step: int) -> dict:
    return torch.load(run / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)


def steps(run: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("*.ckpt"))


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Weights, average, optimizer, order, logged numbers and the model folder: bit for bit."""
    one, two = checkpoint(a, step), checkpoint(b, step)
    for key in ("state_dict", "optimizer_states", "BatchModule", "global_step", "ldm_total_steps", "ldm_weights"):
        assert_same(one[key], two[key], key)
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
    for name in ("config.json", "model.safetensors", "manifest.json"):
        assert (a / "model" / name).read_bytes() == (b / "model" / name).read_bytes(), name
    assert json.loads((a / "model" / "manifest.json").read_text())["format"] == 1


def assert_same(a, b, where: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.shape == b.shape and torch.equal(a, b), where
    else:
        assert a == b, f"{where}: {a} and {b}"


def strike(owner: object, name: str, n: int, blow: Callable[[], object]) -> None:
    """Has `blow` struck as the n-th call of `owner.name` begins, from 1 on: for forked processes, it isn't undone."""
    original, calls = getattr(owner, name), [0]

    def struck(*args, **kwargs):
        calls[0] += 1
        if calls[0] == n:
            blow()
        return original(*args, **kwargs)

    setattr(owner, name, struck)


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def struck_run(stage: str, owner: object, name: str, n: int, blow: Callable[[], object], *words: str) -> Callable:
    """The work of a process that trains until it is struck."""

    def work() -> None:
        strike(owner, name, n, blow)
        train(stage, *words)

    return work
