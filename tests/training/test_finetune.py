"""Fine-tuning: what trains, what doesn't, what comes out, and that a resumed one is the run."""

import json

import pytest
import torch
from PIL import Image

from ldm.adapters import LoraAdapter
from ldm.common.errors import UserError
from ldm.model.loading import load
from ldm.training.finetune.kinds import FullFinetune, LoRAFinetune, TextualInversion
from ldm.training.finetune.task import FinetuneTask
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.task import Task
from tests.adapters.models import generated_latents, small
from tests.reliability.runs import assert_same_run

pytest.importorskip("peft")
LORA = ("finetune=lora", "base=digits", "rank=2", "optimizer.lr=0.1", "samples.every_n_steps=2")
KINDS = {
    "lora": lambda: LoRAFinetune(rank=2, targets="all", text_encoder=True),
    "attention": lambda: LoRAFinetune(rank=2),
    "dora": lambda: LoRAFinetune(rank=2, kind="dora", targets=["attention", "conv1"], rank_pattern={"attn2": 3}),
    "loha": lambda: LoRAFinetune(rank=2, kind="loha", targets=["attention", "conv1"], alpha_pattern={"conv1": 0.5}),
    "lokr": lambda: LoRAFinetune(rank=1, kind="lokr", targets=["attention", "conv1"]),
    "full": FullFinetune,
    "word": lambda: TextualInversion("<mine>", "cat"),
}


def task_of(kind) -> FinetuneTask:
    model = small()
    torch.manual_seed(1)
    kind.prepare(model)
    return FinetuneTask(model, kind, {"hash": "0" * 64, "path": "../base"}, learning_rate=LearningRate(0.01, 1))


def batch_of(n: int = 4) -> dict:
    texts = ["a <mine>", "a cat", "a dog above a <mine>", "a fish"]
    return {
        "latent_mean": torch.randn(n, 2, 4, 4),
        "latent_std": torch.full((n, 2, 4, 4), 0.1),
        "text": texts[:n],
        "position": torch.arange(n),
    }


@pytest.mark.parametrize("name", KINDS)
def test_two_steps_reach_everything_that_trains_and_nothing_else(name):
    task = task_of(KINDS[name]())
    before = {k: v.clone() for k, v in task.state_dict().items()}
    training = {id(p) for p in task.trained.parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in task.trained.parameters() if p.requires_grad], 0.01)
    reached: set[int] = set()
    torch.manual_seed(2)
    for _ in range(2):
        loss, _ = task.losses(batch_of(), task.trained)
        optimizer.zero_grad()
        loss.backward()
        reached |= {id(p) for p in task.parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert training and reached == training
    named = dict(task.named_parameters(remove_duplicate=False))
    changed = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k, p in named.items() if id(p) in training}
    frozen = [k for k, p in named.items() if k.startswith("trained.") and id(p) not in training]
    assert bool(frozen) == (name != "full")
    assert all(named[k] is named[k.replace("trained.", "average.", 1)] for k in frozen), "shared, not copied"


@pytest.mark.parametrize("name", ["lora", "attention", "dora", "loha", "lokr"])
def test_at_step_0_images_are_the_bases(name):
    assert torch.equal(generated_latents(task_of(KINDS[name]()).model()), generated_latents(small()))


def test_a_lora_run_leaves_an_adapter_that_opens_on_its_untouched_base(runs, train, tmp_path):
    folder = runs / "ldm" / "digits" / "model"
    base = {path.name: path.read_bytes() for path in folder.iterdir()}
    train("ldm", runs, *LORA, "optimizer.lr=1", "trainer.max_steps=4", "checkpoint.every_n_steps=2")
    run = runs / "ldm" / "digits-lora"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == base
    assert sorted(p.name for p in (run / "samples").iterdir()) == [f"step-0000000{i}.png" for i in (0, 2, 4)]
    config = json.loads((run / "model" / "config.json").read_text())["model"]
    assert config["class"] == "LoraAdapter" and config["base"]["path"] == "../../digits"
    model, plain = load(run), load(runs / "ldm" / "digits")
    assert list(model.adapters) == ["digits-lora"]
    first = plain(labels=[3], output="pt")
    assert not torch.equal(model(labels=[3], output="pt"), first)
    model.unload_lora()
    assert torch.equal(model(labels=[3], output="pt"), first)
    checkpoint = run / "checkpoints" / "step-00000004.ckpt"
    assert torch.equal(load(checkpoint)(labels=[3], output="pt"), load(run)(labels=[3], output="pt"))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(".lora_" in name or name.startswith("latent_") for name in state)
    grids = [Image.open(run / "samples" / f"step-0000000{i}.png").tobytes() for i in (0, 2, 4)]
    assert len(set(grids)) > 1, "no sample changed in four large steps"


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("dora", "loha", "lokr")]


@pytest.mark.parametrize("kind", ["lora", *SLOW])
def test_a_resumed_lora_is_the_run(kind, runs, train, monkeypatch):
    dropout = 0.1 if kind in ("lora", "dora") else 0
    own = (f"kind={kind}", "optimizer.lr=0.01", f"finetune.dropout={dropout}", "trainer.max_steps=7")
    words = (*LORA, *own, "checkpoint.every_n_steps=2")
    whole = train("ldm", runs, *words, f"name={kind}-whole")
    step, calls = Task.training_step, []

    def struck(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 6:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", struck)
    with pytest.raises(ZeroDivisionError):
        train("ldm", runs, *words, f"name={kind}-cut")
    monkeypatch.undo()
    cut = train("ldm", runs, *words, f"name={kind}-cut", "resume=true")
    assert_same_run(whole, cut, 7)
    assert isinstance(load(cut).adapters[f"{kind}-cut"][0], LoraAdapter)


def test_a_full_fine_tuning_continues_from_the_base_and_gives_a_whole_model(runs, train):
    words = ("finetune=full", "base=digits", "trainer.max_steps=2", "optimizer.lr=0.01", "samples.every_n_steps=1")
    run = train("ldm", runs, *words, "name=digits-full")
    base, tuned = load(runs / "ldm" / "digits"), load(run)
    state, after = base.state_dict(), tuned.state_dict()
    assert state.keys() == after.keys()
    changed = [n for n in state if not torch.equal(state[n], after[n])]
    assert {n.split(".")[0] for n in changed} == {"denoiser", "conditioner"}
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"step-0000000{i}.png" for i in range(3)]


def test_what_cant_be_fine_tuned_is_refused_before_work_starts(runs, train):
    refused = [
        (("finetune=full",), "base="),
        (("finetune=full", "base=nowhere"), "no run 'nowhere'"),
        (("base=digits",), "finetune="),
        ((*LORA, "data.size=16", "name=a"), r"prepared differently \(height 8 there, 16 here"),
        ((*LORA, "targets=atention", "name=b"), "Did you mean 'attention'"),
        ((*LORA, "text_encoder=true", "name=c"), "built-in text encoder"),
        (("finetune=textual_inversion", "base=digits", "word=x", "name=d"), "built-in text encoder"),
        ((*LORA, "rank=0", "name=e"), "rank=0"),
        ((*LORA, "kind=lohaa", "name=f"), "kind=lohaa.*Did you mean 'loha'"),
        ((*LORA, "kind=loha", "finetune.dropout=0.1", "name=g"), "dropout=0.1 is for a LoRA"),
        ((*LORA, "rank_pattern={attn1: 0}", "name=h"), "rank_pattern=.*at least 1"),
        ((*LORA, "rank_pattern={conv1: 2}", "name=i"), "rank_pattern: no layer matches 'conv1'"),
    ]
    for words, reason in refused:
        with pytest.raises(UserError, match=reason):
            train("ldm", runs, *words)
