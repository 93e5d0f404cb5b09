"""finetune=distill: what trains, on which conditions and networks; that a resumed run is the run; what is refused."""

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.common.registry import spec_of
from ldm.conditioning.text import tokenizer
from ldm.diffusion import EDM, X0, Eps, Flow, Schedule, V
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.networks import Identity
from ldm.training.finetune.distill import DistillFinetune
from ldm.training.finetune.distill_task import DistillTask
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.task import Task
from tests.reliability.runs import assert_same_run

PARTS = {
    "text": lambda: ldm.Text(tokenizer.train(["a cat"], 258), length=8, dim=8, depth=1, heads=2),
    "label": lambda: ldm.ClassLabel(3, list("abc"), dim=8),
    "map": lambda: ldm.SemanticMap(3, factor=1),
    "low_res": lambda: ldm.LowRes(2, size=[8, 8], latent_channels=2),
}
COLUMNS = {
    "text": lambda n: ["a cat", "a dog", "", "a fish"][:n],
    "label": lambda n: torch.arange(n) % 3,
    "map": lambda n: torch.arange(n * 64).view(n, 8, 8) % 3,
}
WORDS = (
    "finetune=distill",
    "base=digits",
    "optimizer.lr=0.01",
    "samples.every_n_steps=0",
    "levels=4",
    "segments=2",
    "target_decay=0.1",
)


def model_of(parts=("text",), network="UNet", parameterization=None, sampling=None) -> LatentDiffusion:
    """A model of 8x8 pixels without a first stage; each of its outputs says something."""
    torch.manual_seed(0)
    conditioner = ldm.Conditioner({name: PARTS[name]() for name in parts})
    sizes = {"UNet": {"channels": [8, 8]}, "DiT": {"channels": 8, "depth": 1}}[network]
    dims = {"context_dim": conditioner.token_dim, "vector_dim": conditioner.vector_dim}
    dims |= {"concat_channels": conditioner.concat_channels, "in_channels": 2, "heads": 2}
    built = ldm.build({"class": network, **dims, **sizes})
    denoiser = ldm.Denoiser(built, parameterization or Flow())
    sampling = {"steps": 20, "guidance": 3.0, **(sampling or {})}
    model = LatentDiffusion(Identity(2), denoiser, conditioner, Preprocess(2, 8, 8), sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def task_of(model: LatentDiffusion, **options) -> DistillTask:
    kind = DistillFinetune(**{"levels": 8, "segments": 2, **options})
    kind.scale = kind._scale(model)
    torch.manual_seed(1)
    kind.prepare(model)
    base = {"hash": "0" * 64, "path": "../base"}
    return DistillTask(model, kind, base, learning_rate=LearningRate(0.01, 1))


def batch_of(model: LatentDiffusion, n: int = 4) -> dict:
    torch.manual_seed(2)
    columns = {name: COLUMNS[name](n) for name in model.conditioner.parts if name in COLUMNS}
    return {"image": torch.rand(n, 2, 8, 8) * 2 - 1, "position": torch.arange(n), **columns}


KINDS = {
    "label": {},
    "text on a DiT": {"parts": ("text",), "network": "DiT"},
    "map": {"parts": ("map",), "parameterization": V()},
    "low_res": {"parts": ("low_res",), "parameterization": EDM()},
    "nothing": {"parts": (), "parameterization": X0()},
    "both": {"parts": ("text", "label"), "parameterization": Eps(), "sampling": {"rescale": 0.5, "interval": (0.1, 5)}},
    "zero SNR": {"parts": ("label",), "parameterization": V(Schedule(zero_terminal_snr=True))},
}


def test_guidance_is_baked_in_where_captions_are_read_on_the_host():
    """As in a run: the target of scale 3 differs from that of scale 1 by three times what the caption changes."""
    model = model_of(("text",), "DiT")
    read = model.conditioner.reader(0)(batch_of(model), training=False)
    task = task_of(model, guidance=3.0)
    cond, null = task.conditions(read, task.trained, 0, True)
    x, sigma = torch.randn(4, 2, 8, 8), torch.full((4,), 2.0)
    alone, nothing = task.teacher(x, sigma, cond), task.teacher(x, sigma, model.conditioner.null(4))
    assert (alone - nothing).abs().max() > 1e-3
    guided = task.guided(cond, null, torch.full((4,), 3.0))(x, sigma)
    torch.testing.assert_close(guided, nothing + 3 * (alone - nothing), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_two_steps_train_the_network_alone_whatever_it_is_conditioned_on(name):
    model = model_of(**{"parts": ("label",), **KINDS[name]})
    task, batch = task_of(model), batch_of(model)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in task.trained.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(2):
        loss, _ = task.losses(batch, task.trained)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(0 < loss < 10 for loss in losses)
    changed = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("trained.denoiser.network.") for k in changed)


def test_at_first_the_student_is_the_base_and_a_slider_doesnt_change_it():
    given = {"labels": [0, 1], "output": "pt", "guidance": 1.0, "sampler": "euler", "steps": 2}
    wanted = model_of(("label",))(**given)
    for options in ({}, {"guidance": [1, 5]}):
        model = task_of(model_of(("label",)), **options).model()
        assert torch.equal(model(**given), wanted)
        assert model.distilled == {"steps": 2}
    model = task_of(model_of(("label",)), guidance=[1, 5]).model()
    assert model.sampling["guidance"] == 3.0 and spec_of(model.denoiser)["network"]["guidance_dim"]
    torch.nn.init.normal_(model.denoiser.network.time_embedding.cond_proj.weight, std=0.1)
    images = [model(**given | {"guidance": scale}) for scale in (1.0, 3.0, 3.0)]
    assert torch.equal(*images[1:]) and (images[0] - images[1]).abs().max() > 1e-3
    with pytest.raises(UserError, match="one guidance scale for all"):
        model(**given | {"guidance": {"label": 2.0}})


def test_training_brings_one_step_to_the_bases_many():
    """On a base that is a Gaussian's own denoiser: whatever the start, the student learns to jump."""
    model = model_of(("label",), "DiT", sampling={"guidance": 1.0})
    task = task_of(model, segments=1, levels=4, target_decay=0.0)
    s = 0.5

    class Gaussian(torch.nn.Module):
        def forward(self, x, sigma, cond):
            return x * s**2 / (s**2 + sigma.view(-1, 1, 1, 1) ** 2)

    task.teacher = Gaussian()
    optimizer = torch.optim.AdamW(task.trained["denoiser"].network.parameters(), 0.01)
    batch, first = {**batch_of(model, 16), "image": torch.randn(16, 2, 8, 8) * s}, None
    for step in range(40):
        loss, _ = task.losses({**batch, "position": torch.arange(16) + 16 * step}, task.trained)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_a_resumed_distillation_is_the_run_with_both_averages(runs, train, monkeypatch):
    words = (*WORDS, "guidance=[1,4]", "trainer.max_steps=5", "checkpoint.every_n_steps=2")
    whole = train("ldm", runs, *words, "name=fast-whole")
    step, calls = Task.training_step, []

    def struck(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 4:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", struck)
    with pytest.raises(ZeroDivisionError):
        train("ldm", runs, *words, "name=fast-cut")
    monkeypatch.undo()
    cut = train("ldm", runs, *words, "name=fast-cut", "resume=true")
    assert_same_run(whole, cut, 5)
    (newest,) = cut.glob("checkpoints/*5.ckpt")
    kept = torch.load(newest, weights_only=True)["state_dict"]
    heads = {name.split(".network.")[0] for name in kept if ".network." in name}
    assert heads == {"trained.denoiser", "average.denoiser", "target"}
    assert not torch.equal(kept["target.network.conv_in.weight"], kept["average.denoiser.network.conv_in.weight"])
    model = load(cut)
    assert model.sampling["sampler"] == "euler" and model.distilled == {"steps": 2}
    with pytest.raises(UserError, match="the base is itself distilled"):
        train("ldm", runs, *WORDS, "base=fast-cut", "name=fast-again")


def test_a_lora_that_makes_a_base_fast_brings_its_way_of_sampling_and_takes_it_away():
    pytest.importorskip("peft")
    task = task_of(model_of(("label",)), lora=True, rank=2)
    adapter = task.saved()
    model = model_of(("label",))
    own = dict(model.sampling)
    model.put_on(adapter, "fast", force=True)
    assert model.sampling["sampler"] == "euler" and model.distilled == {"steps": 2}
    with pytest.raises(UserError, match="at most 2"):
        model(labels=[0], steps=3)
    model.unload_lora("fast")
    assert model.sampling == own and not model.distilled and "distilled" not in spec_of(model)
    model.put_on(adapter, "fast", force=True)
    model.merge_lora()
    assert spec_of(model)["distilled"] == {"steps": 2} and spec_of(model)["sampling"]["steps"] == 2


def test_a_negative_prompt_without_effect_is_reported(caplog):
    model = task_of(model_of(("text",))).model()
    with caplog.at_level("WARNING", "ldm"):
        model("a cat", negative="a dog")
    assert "the negative prompt has no effect" in caplog.text


@pytest.mark.slow
def test_it_trains_under_bf16_mixed_and_as_a_lora(runs, train):
    pytest.importorskip("peft")
    run = train("ldm", runs, *WORDS, "name=fast-half", "trainer.max_steps=1", "trainer.precision=bf16-mixed")
    assert load(run).distilled
    run = train("ldm", runs, *WORDS, "name=fast-lora", "trainer.max_steps=2", "lora=true", "rank=2")
    model = load(run)
    assert list(model.adapters) == ["fast-lora"] and model.sampling["steps"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"levels": 6, "segments": 4}, "multiple of the segments"),
        ({"levels": 4, "skip": 4, "segments": 1}, "steps over at least 1 level"),
        ({"guidance": [3, 1]}, "one scale, or"),
        ({"target_decay": 1.0}, "a share below 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        DistillFinetune(**words)


def test_more_steps_than_it_was_trained_for_are_refused():
    model = task_of(model_of(("label",))).model()
    with pytest.raises(UserError, match=r"steps=3: .* at most 2"):
        model(labels=[0], steps=3)


def test_guidance_that_the_base_cant_take_is_refused():
    with pytest.raises(UserError, match="no condition for guidance"):
        DistillFinetune(guidance=2.0)._scale(model_of(()))
    with pytest.raises(UserError, match="one scale per condition"):
        DistillFinetune()._scale(model_of(("label",), sampling={"guidance": {"label": 2.0}}))
