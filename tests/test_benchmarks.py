"""The benchmarks' own arithmetic, and that what they compare is the same function."""

import json

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks import __main__ as bench
from benchmarks import paired, unet_step, vae_step
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import report, suite, table
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.deadline import CUT


def test_ratios_are_of_the_same_round():
    found = paired.compared({"ours": [1.0, 2.0, 4.0], "other": [2.0, 6.0, 4.0]})
    assert found["times ours"]["other"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert found["ms"] == {"ours": 2000.0, "other": 4000.0}


def test_calls_take_turns_and_the_first_round_warms_up():
    order = []
    seconds = paired.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3 and all(len(values) == 2 for values in seconds.values())


def test_operations_of_a_step_are_three_times_the_forward_passs():
    layer, x = nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    assert paired.flops(lambda: layer(x).sum().backward()) == 3 * 2 * 4 * 8 * 16


def test_a_table_has_every_column_of_every_case():
    lines = {"one": {"a": 1.0, "b": "x"}, "two": {"c": 2}}
    assert paired.table(lines).splitlines() == [
        "| | a | b | c |",
        "|---|---|---|---|",
        "| one | 1 | x |  |",
        "| two |  |  | 2 |",
    ]


@pytest.mark.parametrize("widths", [(32, 32, 64), pytest.param(unet_step.WIDTHS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cross", [True, False])
def test_the_networks_that_are_timed_are_the_same_function(cross, widths, monkeypatch):
    monkeypatch.setattr(unet_step, "WIDTHS", widths)
    found = unet_step.measure(side=8, cross=cross, batch=2, rounds=1)
    assert found["largest difference"] < 1e-4 and found["flops"] > 0


def test_the_autoencoders_that_are_timed_are_the_same_function():
    assert vae_step.against_diffusers(batch=2, rounds=1)["largest difference"] < 1e-4


def test_unknown_benchmarks_and_options_are_refused():
    with pytest.raises(SystemExit, match="no benchmark called unet"):
        bench.main(["unet"])
    with pytest.raises(SystemExit, match="option rouds"):
        bench.main(["start_up", "rouds=3"])


def test_without_time_a_gpus_report_is_whole_and_lists_what_was_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    out = tmp_path / "runs" / "gpu.json"
    assert gpu.main(["tests=0", "table=0", f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["gpu"] is None and found["table"]["rows"] == found["tests"] == {}
    assert "the tests" in found["cut"] and "DiT, tiny, generating, eager, diffusers" in found["cut"]
    text = out.with_suffix(".md").read_text()
    assert "There is no CUDA GPU here" in text and all(f"- {name}" in text for name in found["cut"])


def test_words_that_make_gpu_doesnt_know_are_refused():
    for word in ("test=3", "tests", "tests=soon"):
        with pytest.raises(SystemExit, match=word):
            gpu.options([word], gpu=False)


def test_what_takes_longer_than_is_left_isnt_started():
    budget = Budget(60)
    assert budget.fits("short", 1) and not budget.fits("long", 90)
    assert budget.cut == ["long"]


def test_each_test_is_passed_failed_skipped_or_cut(tmp_path):
    cases = {
        "a": "",
        "b": '<failure message="1 != 2\nmore">trace</failure>',
        "c": f'<skipped message="{CUT}"/>',
        "d": '<skipped message="no bfloat16"/>',
        "e": '<error message="no module"/>',
    }
    lines = [f'<testcase classname="tests.gpu" name="{name}">{inner}</testcase>' for name, inner in cases.items()]
    (tmp_path / "x.xml").write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    assert suite.outcomes(tmp_path / "x.xml") == {
        "passed": 1,
        "failed": {"gpu: b": "1 != 2 more", "gpu: e": "no module"},
        "skipped": {"gpu: d": "no bfloat16"},
        "cut": ["gpu: c"],
    }


def test_a_batch_that_doesnt_fit_is_halved_and_the_rival_takes_the_same(monkeypatch):
    def at_batch(entry, device, dtype, batch, rows):
        if batch > 4:
            raise torch.OutOfMemoryError
        return {"batch": batch}

    monkeypatch.setattr(table, "at_batch", at_batch)
    case = table.cases(tiny=False)[0]
    ours = table.Entry(case, "a training step", "eager", "ours")
    rows = {ours.name: table.row(ours, torch.device("cpu"), torch.float32, {})}
    assert rows[ours.name]["batch"] == 4
    assert table.row(ours._replace(who="diffusers"), torch.device("cpu"), torch.float32, rows)["batch"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("work", table.WORKS)
@pytest.mark.parametrize("case", table.cases(tiny=True), ids=lambda case: case.kind)
def test_what_is_timed_compiled_is_compiled(case, work):
    """Ours in one piece each, as `compile=true` has them."""
    torch._dynamo.reset()
    counters.clear()
    device = torch.device("cpu")
    network, call = table.built(table.Entry(case, work, "compiled", "ours"), device, torch.float32, 2)
    table.compile_as_shipped(network, "ours", backend="aot_eager")
    call()
    halves = 2 if case.kind == "vae" and work == "a training step" else 1
    assert counters["stats"]["unique_graphs"] == halves and not counters["graph_break"]


def test_speeds_are_compared_at_equal_batches_alone():
    def row(who, batch, speed):
        return {"who": who, "batch": batch, "samples_per_s": {"median": speed}}

    rows = {"x, ours": row("ours", 4, 3.0), "x, diffusers": row("diffusers", 4, 2.0)}
    rows |= {"y, ours": row("ours", 4, 3.0), "y, diffusers": row("diffusers", 2, 2.0)}
    assert report.ratios(rows) == ["x: 1.50"]


def test_what_scale_measured_is_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    measured = {
        "batch 16": {"images/s": 58.0, "peak, MB": 900.0},
        "batch 8": {"images/s": 44.0, "peak, MB": 800.0},
        "8x8 latents": {"images/s": 68.0, "peak, MB": 900.0},
        "1,000,000 latents": {"images/s": 150.0, "RssAnon, MB": 645.0, "a batch gathered in ms": 1.0},
        "2 processes": {"images/s": 59.0},
    }
    assert plot.series(measured, r"batch (\d+)", ("images/s",)) == [(8, 44.0), (16, 58.0)]
    assert plot.series(measured, r"([\d,]+) latents", ("peak, MB", "RssAnon, MB")) == [(1e6, 645.0)]
    source, out = tmp_path / "bench.json", tmp_path / "scale.png"
    source.write_text(json.dumps({"scale": measured}))
    plot.main([str(source), str(out)])
    assert out.stat().st_size > 5000
    source.write_text("{}")
    with pytest.raises(SystemExit, match="no part called scale"):
        plot.main([str(source), str(out)])
