"""Compiled training: the same weights under the same names, in few graphs, and a run continues with or without."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

import ldm

COMPILED = "compile=aot_eager"
EPS = 1e-5  # above rounding: a gradient that is 0 but for it would make Adam's steps as large as any
CASES = {
    "turned and made smaller, against a critic": (
        "vae",
        ["loss.equivariance=0.5", "loss.adversarial=0.5", "loss.adversarial_start=1", "loss.critic_layers=1"],
        4,
    ),
    "checkpointed": ("ldm", ["gradient_checkpointing=true", "network.attention=true"], 2),
    "LoRA": ("ldm", ["finetune=lora", "base=coarse"], 2),
    "ControlNet": ("ldm", ["finetune=controlnet", "control=canny", "base=coarse"], 4),
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=EPS))


def weights(run, step):
    state = torch.load(run / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in name for name in state)
    return state


def close(a, b, atol=1e-5):
    assert list(a) == list(b)
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=atol, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_is_the_run_itself(case, runs, train):
    stage, words, most = CASES[case]
    name = "".join(filter(str.isalpha, case))
    if "base=coarse" in words and not (runs / "ldm" / "coarse").exists():
        train("ldm", runs, "name=coarse", "trainer.max_steps=2")
    words = [*words, "trainer.max_steps=5", "optimizer.schedule=constant"]
    plain = weights(train(stage, runs, f"name={name}plain", *words), 5)
    assert not counters["stats"]
    close(weights(train(stage, runs, f"name={name}compiled", *words, COMPILED), 5), plain)
    assert 0 < counters["stats"]["unique_graphs"] <= most and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_run_continues_with_or_without(compiled_first, runs, train):
    words = [f"name=resumed{compiled_first}", "optimizer.schedule=constant"]
    first, second = (COMPILED, "compile=false") if compiled_first else ("compile=false", COMPILED)
    train("ldm", runs, *words, "trainer.max_steps=2", first)
    resumed = train("ldm", runs, *words, "trainer.max_steps=4", "resume=true", second)
    whole = train("ldm", runs, f"name=whole{compiled_first}", "optimizer.schedule=constant", "trainer.max_steps=4")
    close(weights(resumed, 4), weights(whole, 4))


@pytest.mark.slow
def test_in_bfloat16_and_generating(runs, train):
    words = ["trainer.precision=bf16-mixed", "trainer.max_steps=3", "optimizer.schedule=constant"]
    plain = weights(train("ldm", runs, "name=half", *words), 3)
    run = train("ldm", runs, "name=halfcompiled", *words, COMPILED)
    close(weights(run, 3), plain, 2e-3)
    assert not counters["graph_break"]
    model, other = ldm.load(run), ldm.load(run, compile="aot_eager")
    assert "aot_eager" in repr(other) and copy.deepcopy(other).coding.compile.backend == "aot_eager"
    for options in ({"n": 2, "size": 8}, {"n": 3, "size": 12, "guidance": 2.0}):
        a, b = (m(labels=3, output="pt", **options) for m in (model, other))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not counters["graph_break"]
