"""What bounds the latents: the codebook's terms, how its use is counted, and where dead codes go."""

import math

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.networks import Gaussian, VQModel
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.regularizers import CodebookTerms, check_codebook, codebook_use, regularizer_of
from ldm.training.vae_task import VAETask


def quantiser(codes=((0.0, 0.0), (1.0, 1.0), (5.0, 5.0))) -> VQModel:
    torch.manual_seed(0)
    vae = VQModel(1, 2, codes=len(codes), channels=8, multipliers=[1, 1], groups=4)
    with torch.no_grad():
        vae.quantize.embedding.weight.copy_(torch.tensor(codes))
    return vae


def point(values) -> Gaussian:
    z = torch.tensor(values).view(1, 1, -1, 2).movedim(-1, 1)  # (1, 2, 1, N)
    return Gaussian(z.requires_grad_(), torch.zeros_like(z))


def test_codes_move_to_latents_and_latents_to_codes_by_their_weights():
    vae, terms = quantiser(), CodebookTerms(3, weight=2.0, commitment=0.25)
    posterior = point([[0.1, 0.0], [1.0, 0.6]])
    loss, figures = terms(vae, posterior, torch.mean, 0)
    squares = (0.1**2 + 0.4**2) / 4  # the mean over four elements
    assert figures["commitment"].item() == pytest.approx(squares)
    assert loss.item() == pytest.approx(2 * 1.25 * squares)
    loss.backward()
    codes = vae.quantize.embedding.weight.grad
    torch.testing.assert_close(codes, torch.tensor([[-0.1, 0.0], [0.0, 0.4], [0.0, 0.0]]))  # 2 * 2 (e - z) / 4
    torch.testing.assert_close(posterior.mean.grad[0, :, 0], 0.25 * torch.tensor([[0.1, 0.0], [0.0, -0.4]]))


def test_use_and_perplexity_of_counts():
    use, perplexity = codebook_use(torch.tensor([8.0, 8.0, 0.0, 0.0]))
    assert (use.item(), perplexity.item()) == (0.5, pytest.approx(2))
    use, perplexity = codebook_use(torch.tensor([96.0, 2.0, 2.0, 0.0]), least=0.1)
    assert use.item() == 0.25 and perplexity.item() == pytest.approx(
        math.exp(-0.96 * math.log(0.96) - 0.04 * math.log(0.02))
    )


def test_validation_counts_all_of_its_batches_once():
    vae, terms = quantiser(), CodebookTerms(3)
    for values in ([[0.0, 0.0], [0.1, 0.0]], [[1.0, 1.0], [1.0, 0.9]]):
        _, figures = terms(vae, point(values), torch.mean, None)
        assert list(figures) == ["commitment"]
    found = terms.validated()
    assert found == {"codebook_use": pytest.approx(2 / 3), "perplexity": pytest.approx(2)}
    assert terms.validated() == {} and not terms.used.any()


def test_a_dead_code_moves_to_the_latent_that_codes_represent_worst_and_no_other_moves():
    vae, terms = quantiser(), CodebookTerms(3)
    average = quantiser()
    before = vae.quantize.embedding.weight.clone()
    values = [[0.0, 0.0], [1.0, 1.0], [3.0, 2.5]]  # the last is far from all codes, and the third code isn't used
    with torch.no_grad():
        vae.quantize.embedding.weight[2] = 50
    for _ in range(400):
        terms(vae, point(values), torch.mean, 0)
    terms.after_step([vae, average], 0, 9)  # not every step
    assert vae.quantize.embedding.weight[2, 0] == 50
    terms.after_step([vae, average], 0, 10)
    for network in (vae, average):
        assert torch.equal(network.quantize.embedding.weight[:2], before[:2])
        assert network.quantize.embedding.weight[2].tolist() == [3.0, 2.5]
    with torch.no_grad():
        vae.quantize.embedding.weight[2] = 50
    terms.after_step([vae], 0, 20)  # it has its grace
    assert vae.quantize.embedding.weight[2, 0] == 50
    never = CodebookTerms(3, revive_below=0)
    for _ in range(400):
        never(vae, point(values), torch.mean, 0)
    never.after_step([vae], 0, 10)
    assert vae.quantize.embedding.weight[2, 0] == 50


def test_latents_that_arent_numbers_move_no_code():
    vae, terms = quantiser(), CodebookTerms(3)
    terms.used[0], terms.grace[:] = 1.0, 0.0
    terms(vae, point([[math.nan, 0.0]]), torch.mean, 0)
    terms.after_step([vae], 0, 10)
    assert torch.equal(vae.quantize.embedding.weight, quantiser().quantize.embedding.weight)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_trains_encoder_codes_and_decoder(autocast):
    task = VAETask(quantiser(), None, 1e-4, learning_rate=LearningRate(1e-3))
    batch = {"image": torch.rand(2, 1, 8, 8), "position": torch.arange(2)}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, logged = task.losses(batch, task.trained)
    loss.backward()
    assert {"commitment", "codebook_use", "perplexity", "mse", "psnr"} <= logged.keys() and "kl" not in logged
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight", "decoder.conv_in.weight"):
        assert task.trained.get_parameter(name).grad.abs().max() > 0, name
    mse = logged["mse"].float().item()
    assert loss.item() == pytest.approx(mse + 1.25 * logged["commitment"].item(), rel=1e-2 if autocast else 1e-5)


def test_with_the_encoder_frozen_the_codes_stay():
    task = VAETask(quantiser(), None, 1e-4, None, 0, True, learning_rate=LearningRate(1e-3))
    batch = {"image": torch.rand(2, 1, 8, 8), "position": torch.arange(2)}
    loss, logged = task.losses(batch, task.trained)
    loss.backward()
    assert loss.item() == pytest.approx(logged["mse"].item())
    assert task.trained.quantize.embedding.weight.grad is None
    assert task.trained.decoder.conv_in.weight.grad is not None


def test_options_that_have_no_effect_or_make_no_sense_are_refused():
    kl = ldm.AutoencoderKL(1, 2, channels=8)
    with pytest.raises(UserError, match="codebook.commitment=0.5: AutoencoderKL has no codebook"):
        check_codebook({"weight": 1.0, "commitment": 0.5, "revive_below": 0.05}, kl)
    check_codebook({"weight": 1.0, "commitment": 0.25, "revive_below": 0.05}, kl)
    check_codebook({"commitment": 0.5}, quantiser())
    with pytest.raises(UserError, match="revive_below=1: give a weight above 0"):
        CodebookTerms(4, revive_below=1.0)
    note = regularizer_of(quantiser(), 1e-4).note(None)
    assert "codebook of 3 codes" in note and "beta, the weight of a KL term, isn't used" in note
    assert "isn't used" in regularizer_of(ldm.networks.AutoencoderTiny(1, 2, channels=4), 1e-4).note(kl)


@pytest.mark.slow
def test_a_resumed_run_with_a_codebook_is_the_uninterrupted_one_bit_for_bit(tmp_path, train):
    words = [
        "vae=vq_small",
        "vae.codes=16",
        "vae.shortcut=false",
        "optimizer.schedule=constant",
        "codebook.revive_below=0.9",
    ]
    words += ["trainer.val_check_interval=10", "checkpoint.every_n_steps=10"]
    whole = train("vae", tmp_path, "name=whole", "trainer.max_steps=30", *words)
    part = train("vae", tmp_path, "name=part", "trainer.max_steps=15", *words)
    train("vae", tmp_path, "name=part", "trainer.max_steps=30", "resume=true", *words)
    one, two = (ldm.load(run).state_dict() for run in (whole, part))
    assert all(torch.equal(one[name], two[name]) for name in one)
    states = [
        torch.load(sorted((run / "checkpoints").glob("*.ckpt"))[-1], weights_only=True)["state_dict"]
        for run in (whole, part)
    ]
    assert states[0].keys() == states[1].keys() and "regularizer.used" in states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_stage_two_runs_on_the_latents_before_the_codebook(tmp_path, train):
    run = train("vae", tmp_path, "vae=vq_small", "vae.codes=16", "vae.shortcut=false", "trainer.max_steps=12")
    text = (run / "metrics.csv").read_text().splitlines()[0]
    assert {"val/codebook_use", "val/perplexity", "val/commitment", "train/codebook_use"} <= set(text.split(","))
    model = ldm.load(train("ldm", tmp_path, "trainer.max_steps=3"))
    assert isinstance(model.first_stage, VQModel)
    images = model(labels=[3], n=2, output="pt")
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    z = torch.randn(2, 2, 4, 4)
    raw = model.unwhiten(z)
    torch.testing.assert_close(model.decode(z), model.first_stage.decode(raw).clamp(-1, 1))
    assert not torch.equal(raw, model.first_stage.quantised(raw))
