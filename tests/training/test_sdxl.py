"""Fine-tuning Stable Diffusion XL, small, on emoji: a LoRA and every weight."""

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import ldm
from ldm.adapters import read, textual_inversion
from ldm.commands import train_ldm
from ldm.config import overrides
from ldm.config.compose import CONF, compose, group_names
from ldm.training.task import Task
from tests.adapters.models import equal
from tests.interop import sdxl
from tests.interop.models import diffusers
from tests.interop.pipelines import assert_same_image, generate, initial_noise, run_pipeline

pytestmark = pytest.mark.slow
PROMPT = "a cat above a rocket"
WORDS = [
    *("data=emoji", "data.size=16", "data.n=48", "data.val_n=16", "logger=none", "batch_size=4", "samples.n=1"),
    *("trainer.accelerator=cpu", "trainer.max_steps=20", "trainer.limit_val_batches=1", "optimizer.lr=0.003"),
    *("optimizer.warmup_steps=1", "gradient_checkpointing=true", "samples.every_n_steps=20"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("sdxl")
    ldm.load(sdxl.write_small(root / "diffusers")).export(root / "base", to="ldm")
    return root / "base"


def train(base, runs, *words):
    _, options = overrides.prepare([*WORDS, f"runs_dir={runs}", f"base={base}", *words], group_names())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train_ldm", options)[0], resolve=True)
    return train_ldm.main(config)


def test_a_lora_trains_on_cached_latents_and_states_and_opens_in_diffusers(base, tmp_path):
    pytest.importorskip("peft")
    run = train(base, tmp_path, "finetune=lora", "finetune.rank=2")
    model = ldm.load(run)
    (name,) = model.loras
    plain, _ = generate(ldm.load(base), prompt=PROMPT, steps=5)
    ours, latents = generate(model, prompt=PROMPT, steps=5)
    assert (ours - plain).abs().max() > 1e-3
    file = model.export_lora(tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(base.parent / "diffusers")
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    sigma = model.denoiser.parameterization.sigma_max
    start = initial_noise(model) * sigma / (1 + sigma**2) ** 0.5
    theirs, expected = run_pipeline(pipe, start, prompt=PROMPT, num_inference_steps=5, height=16, width=16)
    assert_same_image(ours, theirs, latents, expected)

    kohya = model.export_lora(tmp_path / "kohya.safetensors", "kohya")
    other = ldm.load(base)
    other.load_lora(kohya)
    again, _ = generate(other, prompt=PROMPT, steps=5)
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)
    assert name


def test_a_word_of_both_encoders_trains_alone(base, tmp_path):
    words = ("finetune=textual_inversion", "++word=<mine>", "++init=a cat", "++vectors=2", "batch_size=4")
    run = train(base, tmp_path, *words, "trainer.max_steps=4")
    whole = read(run).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == {"row": (2, 16), "row_2": (2, 24)}
    start = ldm.load(base)
    textual_inversion.start(start, "<mine>", "a cat", 2)
    first = textual_inversion.trained(start, "<mine>", {}).state_dict()
    for name, tensor in whole.items():
        assert (tensor - first[name]).abs().min() > 0  # every number has learned
    model, plain = ldm.load(run), ldm.load(base)
    assert not torch.equal(model("a <mine>", output="pt", steps=2), plain("a <mine>", output="pt", steps=2))
    assert torch.equal(model("a cat", output="pt", steps=2), plain("a cat", output="pt", steps=2))
    file = model.export_word(tmp_path / "mine.safetensors", "<mine>")
    plain.load_word(file, word="<mine>")
    assert torch.equal(model("a <mine>", output="pt", steps=2), plain("a <mine>", output="pt", steps=2))


def test_a_word_whose_training_was_cut_off_resumes_bit_exactly(base, tmp_path, monkeypatch):
    words = ("finetune=textual_inversion", "++word=<mine>", "++vectors=2", "trainer.max_steps=5")
    words += ("checkpoint.every_n_steps=2",)
    whole = train(base, tmp_path, *words, "name=whole")
    step, calls = Task.training_step, []

    def struck(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 4:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", struck)
    with pytest.raises(ZeroDivisionError):
        train(base, tmp_path, *words, "name=cut")
    monkeypatch.undo()
    cut = train(base, tmp_path, *words, "name=cut", "resume=true")
    assert equal(read(whole).state_dict(), read(cut).state_dict())
    states = [
        torch.load(run / "checkpoints/step-00000005.ckpt", weights_only=True)["state_dict"] for run in (whole, cut)
    ]
    assert equal(*states) and all(".word_rows." in name or name.startswith("latent_") for name in states[0])


def test_all_weights_train_and_the_model_is_exported(base, tmp_path):
    run = train(base, tmp_path, "finetune=full")
    model = ldm.load(run)
    before = ldm.load(base).denoiser.network.state_dict()
    after = model.denoiser.network.state_dict()
    assert all(not torch.equal(before[name], tensor) for name, tensor in after.items())
    assert model.export(tmp_path / "out").stock
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    ours, latents = generate(model, prompt=PROMPT, steps=5)
    sigma = model.denoiser.parameterization.sigma_max
    start = initial_noise(model) * sigma / (1 + sigma**2) ** 0.5
    theirs, expected = run_pipeline(pipe, start, prompt=PROMPT, num_inference_steps=5, height=16, width=16)
    assert_same_image(ours, theirs, latents, expected)
