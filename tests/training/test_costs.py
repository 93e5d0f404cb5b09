"""Images a second, memory, and the share of a peak that is stubbed here."""

import csv
from types import SimpleNamespace

import pytest
import torch

from ldm.training.trainer import costs
from ldm.training.trainer.costs import Costs, Throughput, in_words, peak_by_name, peak_memory
from ldm.ui.runs.run_state import _LINE


@pytest.mark.parametrize(
    ("name", "precision", "wanted"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312),
        ("NVIDIA A100-SXM4-80GB", "32-true", 156),
        ("NVIDIA H100 80GB HBM3", "16-mixed", 989.4),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756),
        ("NVIDIA L40S", "bf16-mixed", 362),
        ("Tesla V100-PCIE-16GB", "32-true", 14),
        ("Tesla V100-SXM2-32GB", "16-mixed", 125),
        ("Tesla V100-SXM2-32GB", "bf16-mixed", None),
        ("Tesla T4", "bf16-mixed", None),
        ("NVIDIA GH200 480GB", "bf16-mixed", None),
        ("NVIDIA A10", "bf16-mixed", 125),
        ("NVIDIA A10G", "bf16-mixed", None),
        ("NVIDIA RTX A1000", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed", None),
        ("NVIDIA A100-SXM4-80GB", "64-true", None),
    ],
)
def test_peaks_are_found_by_name_and_precision(name, precision, wanted):
    assert peak_by_name(name, precision) == (wanted and pytest.approx(1e12 * wanted))


def test_a_processor_has_no_peak_and_a_memory():
    cpu = torch.device("cpu")
    assert costs.peak_of(cpu, "32-true") is None
    assert 0.05 < peak_memory(cpu) < 1000
    assert 0.05 < costs._most_resident() < 1000


def test_operations_are_counted_once_and_the_share_is_of_all_processes_images(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(costs, "peak_of", lambda device, precision: 1e6)
    monkeypatch.setattr(costs, "peak_memory", lambda device: None)
    data, logged = SimpleNamespace(position=0, batch_size=80), []
    trainer = SimpleNamespace(datamodule=data, world_size=2, global_step=0, accumulate_grad_batches=1, precision="32")
    trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    layer = torch.nn.Linear(8, 16)
    task = SimpleNamespace(shown={}, every=1, log_dict=logged.append, parameters=layer.parameters)
    own, batch = Costs(), {"position": torch.arange(4)}
    own.on_train_start(trainer, task)
    own.on_train_batch_start(trainer, task, batch, 0)
    layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
    own.on_after_backward(trainer, task)
    layer(torch.randn(4, 8))  # no longer counted
    own.on_train_batch_start(trainer, task, batch, 1)
    assert own._counter is None
    trainer.global_step = 1
    own.on_train_batch_end(trainer, task, None, batch, 1)
    flops = 3 * 2 * 8 * 16  # of an image, forward and backward
    assert logged == [{"speed/images_per_s": 40.0, "speed/share_of_peak": pytest.approx(flops * 40 / 2 / 1e6)}]
    assert task.shown == {"images_per_s": 40.0, "share_of_peak": logged[0]["speed/share_of_peak"]}


def test_counting_ends_where_the_step_fails():
    own = Costs()
    own._peak = 1.0
    own.on_train_batch_start(None, None, {"position": torch.arange(4)}, 0)
    own.on_exception(None, None, RuntimeError())
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


def test_a_run_says_what_its_steps_cost(runs, train, monkeypatch):
    monkeypatch.setattr(costs, "peak_of", lambda device, precision: 1e9)
    run = train("ldm", runs, "name=costs", "trainer.max_steps=3")
    with (run / "speed.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == [0, 1, 2]
    shares = [row["speed/share_of_peak"] / row["speed/images_per_s"] for row in rows]
    assert shares[0] > 0 and shares == pytest.approx([shares[0]] * 3, rel=1e-5)
    assert all(row["speed/memory_gb"] > 0.05 for row in rows)
    assert "speed/" not in (run / "metrics.csv").read_text()


def test_progress_says_all_figures_and_the_page_reads_its_line():
    shown = {"loss": 0.5, "loss_q1": 0.91234, "loss_q2": 0.2, "loss_q4": 0.1, "grad_norm": 1.5, "memory_gb": 2.25}
    words = in_words(shown | {"share_of_peak": 0.314})
    assert words == {"by noise": "0.912 0.2 0.1", "norm": "1.5", "GB": "2.25", "of peak": "31%"}
    assert in_words({}) == {}
    line = "step 35/40  loss 0.2500  120 samples/s" + "".join(f"  {name} {value}" for name, value in words.items())
    assert _LINE.match(line)


def test_throughput_is_since_the_last_call(monkeypatch):
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rate = Throughput()
    assert [rate(10), rate(30)] == [10, 10]
