"""The benchmarks' own arithmetic, and that what they compare is the same function."""

import json

import pytest
import torch
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import paired, unet_step, vae_step


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


@pytest.mark.parametrize("cross", [True, False])
def test_the_networks_that_are_timed_are_the_same_function(cross):
    found = unet_step.measure(side=8, cross=cross, batch=2, rounds=1)
    assert found["largest difference"] < 1e-4 and found["flops"] > 0


def test_the_autoencoders_that_are_timed_are_the_same_function():
    assert vae_step.against_diffusers(batch=2, rounds=1)["largest difference"] < 1e-4


def test_unknown_benchmarks_and_options_are_refused():
    with pytest.raises(SystemExit, match="no benchmark called unet"):
        bench.main(["unet"])
    with pytest.raises(SystemExit, match="option rouds"):
        bench.main(["start_up", "rouds=3"])


def test_what_scale_measured_is_drawn(tmp_path):
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
