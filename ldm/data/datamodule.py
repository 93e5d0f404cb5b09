"""Batches for Lightning. The sampler yields the positions of a whole batch, and the table gathers its rows."""

import os
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ldm.common.randomness import permutation, uniform
from ldm.data.balance import balanced_repeats
from ldm.data.order import PositionSampler, Visits, bucket_rows, index_of
from ldm.data.storage.table import REPEATS, values
from ldm.images import Preprocess


class Gathers(Protocol):
    """The methods that `Table` and `LatentTable` have in common; see there."""

    @property
    def preprocess(self) -> Preprocess:
        """How the stored images were made from files."""

    def __len__(self) -> int: ...
    def batch(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """The rows at `index` (B,) as floating point: the columns `keys`, each sample's random numbers chosen by
        `draw`."""

    def gather(self, index: np.ndarray, keys: Collection[str], draw: np.ndarray | None = None) -> dict[str, Any]:
        """As `batch`, but as stored: integers that `values` converts, on any device."""


Read = Callable[[dict[str, Any], bool], dict[str, Any]]  # (batch, training) -> the batch with what conditions need


def as_gathered(batch: dict[str, Any], training: bool) -> dict[str, Any]:
    """The batch as it is: a `Read` that adds nothing."""
    return batch


def visits_of(parts: Sequence[Gathers], balance: str | None = None) -> list[Visits]:
    """The visits of an epoch to each part of the data. They follow its column of repeats, if there is one; with
    `balance`, each value of that column is visited equally often."""
    tables: list[Any] = [getattr(part, "table", part) for part in parts]
    if balance:
        return [Visits(len(repeats), repeats) for repeats in balanced_repeats(tables, balance)]
    columns = [getattr(table, "columns", {}) for table in tables]
    return [Visits(len(part), own.get(REPEATS)) for part, own in zip(parts, columns, strict=True)]


class TrainBatches(Dataset):
    """Maps positions (B,) of the endless training order to their batch as it is stored.

    The batch also has `position` and `index` (B,) int64, and `start`, the first position of the batch over all ranks, a
    Python number. `read` adds what conditions compute on the host. `offset` is where this rank's part of each batch
    begins. With `balance`, the values of that column are visited equally often.
    """

    def __init__(
        self,
        table: Gathers,
        keys: Collection[str],
        seed: int,
        batch_size: int = 1,
        read: Read = as_gathered,
        offset: int = 0,
        balance: str | None = None,
    ):
        self.table, self.keys, self.seed, self.batch_size, self.read = table, tuple(keys), seed, batch_size, read
        self.offset = offset
        self.buckets: list[Gathers] = getattr(table, "buckets", [])
        self.visits = visits_of(self.buckets or [table], balance)

    def __getitem__(self, position: np.ndarray) -> dict[str, Any]:
        table, index, before = self._rows(position)
        where = torch.from_numpy(position)
        draw = uniform(self.seed, "caption", where).numpy() if "text" in self.keys else None
        batch = table.gather(index, self.keys, draw) | {
            "position": where,
            "index": torch.from_numpy(index + before),
            "start": int(position[0]) - self.offset,
        }
        return self.read(batch, True)

    def _rows(self, position: np.ndarray) -> tuple[Gathers, np.ndarray, int]:
        """The table that a batch comes from, the batch's rows in it (B,), and the number of rows in the tables before
        it."""
        if not self.buckets:
            index = index_of(position, self.visits[0].total, self.seed)
            return self.table, self.visits[0].rows(index), 0
        bucket, index = bucket_rows(
            position,
            number=(int(position[0]) - self.offset) // self.batch_size,
            sizes=[visits.total for visits in self.visits],
            batch_size=self.batch_size,
            seed=self.seed,
        )
        before = sum(len(table) for table in self.buckets[:bucket])
        return self.buckets[bucket], self.visits[bucket].rows(index), before


class Rows(Dataset):
    """Batches for validation: at most `most` rows of a table, always the same.

    They come in a fixed random order, so that a few batches are representative even if rows are sorted by class. Each
    rank has its part of a batch, whose length is `counted`. If a batch has fewer rows than there are ranks, some ranks
    have a row that doesn't count.
    """

    def __init__(
        self,
        table: Gathers,
        keys: Collection[str],
        batch_size: int,
        most: int,
        rank: int = 0,
        world: int = 1,
        read: Read = as_gathered,
    ):
        self.table, self.keys, self.batch_size, self.read = table, tuple(keys), batch_size, read
        self.order = permutation(0, 0, len(table))[:most]
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= len(self):
            raise IndexError(i)
        whole = np.arange(i * self.batch_size, min((i + 1) * self.batch_size, len(self.order)))
        own = np.array_split(whole, self.world)[self.rank]
        position = own if len(own) else whole[:1]
        index = self.order[position]
        batch = self.table.gather(index, self.keys) | {
            "position": torch.from_numpy(position),
            "index": torch.from_numpy(index),
            "counted": len(own),
        }
        return self.read(batch, False)


def workers_beside(device: torch.device, processes: int) -> int:
    """The number of data workers for each of the `processes` on this machine: none on a CPU or Apple's GPU, which have
    the same memory; otherwise at most 4, so that a core is left for the process itself."""
    if device.type in ("cpu", "mps"):
        return 0
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: a container or a batch system may allow fewer
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(0, min(4, cores // processes - 1))


def outlive_signals(worker: int) -> None:
    """Makes a data worker ignore signals that go to all processes of a run, such as those of Ctrl-C and batch systems:
    the main process finishes the step, saves, and ends its workers. After SIGTERM, a worker that is still running
    half a minute later ends itself."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


class BatchModule(pl.LightningDataModule):
    """Training batches in the order fixed by (seed, position), from `position` on; validation on fixed rows.

    `batch_size` counts the samples of a batch over all ranks. `workers` is the number of processes that make batches.
    `auto` takes none on a CPU, where gathering from a memory map is cheaper than passing the result between processes,
    and `workers_beside` on an accelerator, which would have to wait otherwise.
    """

    def __init__(
        self,
        train: Gathers,
        val: Gathers,
        keys: Collection[str],
        batch_size: int,
        seed: int,
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool | None = None,
        val_samples: int = 512,
        read: Read = as_gathered,
        balance: str | None = None,
    ):
        super().__init__()
        self.train, self.val, self.keys, self.batch_size, self.seed = train, val, keys, batch_size, seed
        self.val_samples, self.read, self.balance = val_samples, read, balance
        self.position = 0
        self.workers = workers
        self.pin_memory = pin_memory

    def train_dataloader(self) -> DataLoader:
        """Batches of the endless training order, from `position` on (Lightning)."""
        sampler = PositionSampler(self.batch_size, start=self.position, **self._share)
        return DataLoader(self._train_batches(), sampler=sampler, **self._options)

    def train_batch(self, start: int) -> dict[str, Any]:
        """This rank's part of the training batch that begins at `start`, as the loader would give it."""
        return self._train_batches()[next(iter(PositionSampler(self.batch_size, start=start, **self._share)))]

    def _train_batches(self) -> TrainBatches:
        share = self._share
        offset = share["rank"] * (self.batch_size // share["world"])
        return TrainBatches(
            self.train,
            self.keys,
            self.seed,
            self.batch_size,
            read=self.read,
            offset=offset,
            balance=self.balance,
        )

    def val_dataloader(self) -> DataLoader:
        """At most `val_samples` rows of the validation table, always the same (Lightning)."""
        rows = Rows(self.val, self.keys, self.batch_size, self.val_samples, **self._share, read=self.read)
        return DataLoader(rows, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        workers = self._workers
        return {
            "batch_size": None,
            "num_workers": workers,
            "pin_memory": self._beside_accelerator if self.pin_memory is None else self.pin_memory,
            "persistent_workers": workers > 0,
            "worker_init_fn": outlive_signals,
        }

    @property
    def _beside_accelerator(self) -> bool:
        """Whether batches are copied to the memory of an accelerator, which is faster from pinned memory."""
        return self.trainer is not None and self.trainer.strategy.root_device.type not in ("cpu", "mps")

    @property
    def _workers(self) -> int:
        if self.workers != "auto":
            return self.workers
        return workers_beside(self.trainer.strategy.root_device, self.trainer.num_devices) if self.trainer else 0

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turns pixels, which are transferred as bytes, into floats on the device."""
        return values(batch, self.train.preprocess)

    @property
    def _share(self) -> dict[str, int]:
        """The part of each batch that belongs to this process: its rank, and the number of processes."""
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world": trainer.world_size} if trainer else {"rank": 0, "world": 1}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the global sample position."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes at the position of a checkpoint."""
        self.position = state_dict["position"]
