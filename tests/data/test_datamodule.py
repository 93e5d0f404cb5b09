"""Batches for training and validation: which samples, in which order, by whom."""

import itertools
import os
import signal

import numpy as np
import pytest
import torch

from ldm.data import Table
from ldm.data.datamodule import BatchModule, Rows, TrainBatches, workers_beside
from ldm.data.order import index_of
from ldm.images import Preprocess


def table(n: int = 100, **columns) -> Table:
    labels = {"label": np.arange(n) // 10}  # sorted by class, as folders of classes are
    return Table(np.zeros((n, 1, 4, 4), np.uint8), labels | columns, Preprocess(1, 4, 4), "key")


def module(position: int = 0, batch_size: int = 8) -> BatchModule:
    made = BatchModule(table(), table(), ["label"], batch_size, seed=3, val_samples=50)
    made.load_state_dict({"position": position})
    return made


def first(loader, n: int) -> list[dict]:
    return list(itertools.islice(iter(loader), n))


def test_training_continues_where_it_stopped():
    whole = first(module().train_dataloader(), 30)
    assert [b["position"][0].item() for b in whole] == list(range(0, 240, 8))
    resumed = module(8 * 17)
    assert resumed.state_dict() == {"position": 8 * 17}
    for a, b in zip(first(resumed.train_dataloader(), 13), whole[17:], strict=True):
        assert a["index"].tolist() == b["index"].tolist() == index_of(b["position"].numpy(), 100, 3).tolist()
        assert a["label"].tolist() == (a["index"] // 10).tolist()
    seen = np.concatenate([b["index"] for b in whole])[:200].reshape(2, 100)
    assert (np.sort(seen) == np.arange(100)).all() and (seen[0] != seen[1]).any()


def test_a_batch_of_the_past_is_made_again_from_its_start():
    made = module(8 * 20)
    for batch in first(made.train_dataloader(), 5):
        again = made.train_batch(batch["start"])
        assert again.keys() == batch.keys() and again["start"] == batch["start"]
        assert all(torch.equal(again[key], batch[key]) for key in ("position", "index", "label"))


def test_alternative_captions_change_from_visit_to_visit():
    texts = [[f"{i} one way", f"{i} another"] for i in range(4)]
    batches = TrainBatches(table(4, text=texts), ["text"], seed=0)
    epochs = [
        dict(zip(b["index"].tolist(), b["text"], strict=True))
        for b in (batches[np.arange(4) + 4 * e] for e in range(8))
    ]
    assert all(text.startswith(str(i)) for epoch in epochs for i, text in epoch.items())
    assert all(len({epoch[i] for epoch in epochs}) == 2 for i in range(4))
    assert batches[np.arange(4)]["text"] == batches[np.arange(4)]["text"]


def test_validation_is_the_same_every_time_and_of_all_classes_from_its_first_batches_on():
    rows = list(module().val_dataloader())
    assert [len(b["label"]) for b in rows] == [8] * 6 + [2]
    assert np.concatenate([b["position"] for b in rows]).tolist() == list(range(50))
    index = np.concatenate([b["index"] for b in rows])
    assert len(set(index.tolist())) == 50
    again = np.concatenate([b["index"] for b in module(position=64).val_dataloader()])
    assert (index == again).all()
    assert len({label for b in rows[:3] for label in b["label"].tolist()}) >= 7
    assert len(Rows(table(5), ["label"], 8, 512)) == 1


@pytest.mark.parametrize("n", [16, 17, 3])
def test_ranks_validate_each_row_once(n):
    whole = Rows(table(n), ["label"], 8, 512)
    parts = [Rows(table(n), ["label"], 8, 512, rank, 3) for rank in range(3)]
    for i in range(len(whole)):
        batches = [part[i] for part in parts]
        assert all(len(batch["position"]) for batch in batches)
        counted = torch.cat([batch["position"][: batch["counted"]] for batch in batches])
        assert torch.equal(counted, whole[i]["position"])


def test_workers_by_themselves_are_none_on_a_cpu_and_a_few_beside_an_accelerator(monkeypatch):
    assert module().train_dataloader().num_workers == module().val_dataloader().num_workers == 0
    requested = BatchModule(table(), table(), ["label"], 8, seed=3, workers=2).train_dataloader()
    assert requested.num_workers == 2 and requested.persistent_workers
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    found = [workers_beside(device, n) for device, n in ((cpu, 1), (gpu, 1), (gpu, 2), (gpu, 4), (gpu, 16))]
    assert found == [0, 4, 3, 1, 0]


def test_all_ranks_know_where_their_batch_begins_also_after_another_batch_size():
    """Resumed at 48 with batches of 64, the second of two ranks sees the positions from 80 on."""
    parts = [TrainBatches(table(), ["label"], 0, 64, offset=offset) for offset in (0, 32)]
    starts = [part[np.arange(32) + 48 + part.offset]["start"] for part in parts]
    assert starts == [48, 48]


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="POSIX signals")
def test_a_signal_to_all_processes_does_not_end_the_data_workers():
    made = BatchModule(table(), table(), ["label"], 8, seed=3, workers=1)
    batches = iter(made.train_dataloader())
    next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
        assert [len(next(batches)["label"]) for _ in range(4)] == [8] * 4
    assert worker.is_alive()
    batches._shutdown_workers()
    worker.join(20)
    assert not worker.is_alive()
