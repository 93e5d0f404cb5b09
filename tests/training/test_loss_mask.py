"""Where the loss counts: closed forms of the weighted means, gradients of exactly 0, and runs of both stages."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.data.storage.table import Table
from ldm.diffusion import Flow
from ldm.diffusion.weighting import weighted_mean
from ldm.images import Preprocess
from ldm.training import loss_mask
from ldm.training.ldm_task import DiffusionTask
from ldm.training.loss_mask import LossMask, mean_counted, mean_of_places, pooled
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.trainer.means import by_quarter
from ldm.training.vae_task import VAETask


def test_weighted_mean_is_the_closed_form():
    values = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]], requires_grad=True)  # (1, 2, 2, 2)
    places = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    mean = weighted_mean(values, places)
    assert mean.item() == pytest.approx((1 + 5 + 0.5 * (3 + 7)) / (2 * 1.5))
    mean.sum().backward()
    torch.testing.assert_close(values.grad[0, 0], torch.tensor([[1.0, 0.0], [0.5, 0.0]]) / 3)
    everywhere = weighted_mean(values, torch.full((1, 1, 2, 2), 0.3))
    assert everywhere.item() == pytest.approx(values.mean().item())


def test_image_that_is_hidden_entirely_counts_nothing():
    values = torch.randn(3, 2, 4, 4, requires_grad=True)
    places = torch.ones(3, 1, 4, 4)
    places[1] = 0
    loss = mean_of_places(values, places)
    assert loss.item() == pytest.approx(values[[0, 2]].mean().item(), abs=1e-6)  # as if it weren't in the batch
    loss.backward()
    assert values.grad[1].abs().max() == 0 and values.grad[[0, 2]].abs().min() > 0
    nothing = mean_of_places(values, torch.zeros(3, 1, 4, 4))
    nothing.backward()
    assert nothing.item() == 0 and values.grad.isfinite().all()
    each, inf = torch.tensor([1.0, float("inf")]), torch.tensor([[[[1.0]]], [[[0.0]]]])
    assert mean_counted(each, inf) == 1


def test_places_outside_have_their_weight_and_black_images_too():
    places = LossMask("mask", 0.25).places({"mask": torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]])})
    assert places.flatten().tolist() == [1, 0.25, 0.25, 0.25]
    each = weighted_mean(torch.tensor([[[[1.0, 2.0]]], [[[3.0, 5.0]]]]), places)
    assert each.tolist() == pytest.approx([1.5 / 1.25, 4])
    assert mean_counted(each, places).item() == pytest.approx((1.2 + 0.25 * 4) / 1.25)


def test_a_latent_counts_by_the_share_of_its_pixels():
    places = torch.zeros(1, 1, 8, 8)
    places[..., :4, :6] = 1
    assert pooled(places, (2, 2)).flatten().tolist() == [1, 0.5, 0, 0]


def test_quarters_leave_out_what_does_not_count():
    split = by_quarter(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.1, 0.9]), torch.tensor([1.0, 0.5, 0.0]))
    assert split.sums.tolist() == [2.5, 0, 0, 0] and split.counts.tolist() == [1.5, 0, 0, 0]


class Field(torch.nn.Module):
    """A network whose output is a parameter, so that its gradient is the loss's at each place."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.out = torch.nn.Parameter(torch.randn(1, channels, side, side))

    def forward(self, x, c_noise, cond, residuals=None):
        return self.out.expand(len(x), -1, -1, -1)


def options(**more) -> dict:
    return {"learning_rate": LearningRate(1e-3, total_steps=10), "loss_mask": LossMask("mask"), **more}


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_hidden_latents_have_exactly_no_gradient(loss):
    torch.manual_seed(0)
    denoiser = ldm.Denoiser(Field(2, 4), Flow(), loss=loss)
    task = DiffusionTask(
        ldm.networks.Identity(2),
        denoiser,
        ldm.conditioning.Conditioner(),
        preprocess=None,
        whitening=(torch.zeros(2), torch.ones(2)),
        sampling={},
        **options(),
    )
    mask = torch.zeros(3, 1, 4, 4)
    mask[:, :, :2] = 1
    mask[2] = 0
    moments = {"latent_mean": torch.randn(3, 2, 4, 4), "latent_std": torch.zeros(3, 2, 4, 4)}
    batch = {**moments, "mask": mask, "position": torch.arange(3), "start": 0}
    value, figures = task.losses(batch, task.trained)
    value.backward()
    gradient = task.trained["denoiser"].network.out.grad
    assert gradient[..., 2:, :].abs().max() == 0 and (gradient[..., :2, :] != 0).any()
    assert figures["loss_q"].counts.sum() == 2
    two = {name: one[:2] if isinstance(one, torch.Tensor) else one for name, one in batch.items()}
    torch.testing.assert_close(task.losses(two, task.trained)[0], value)


class Critic(torch.nn.Module):
    """An LPIPS that looks at everything."""

    def forward(self, decoded, images):
        return (decoded.mean((1, 2, 3)) - images.mean((1, 2, 3))).square().view(-1, 1, 1, 1)


@pytest.mark.parametrize("equivariance", [0.0, 1.0])
def test_hidden_pixels_have_exactly_no_gradient_in_any_term(equivariance, monkeypatch):
    torch.manual_seed(0)
    vae = ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1], stem=1)
    task = VAETask(vae, None, 1.0, terms={"equivariance": equivariance}, **options())
    task.criterion.perceptual, task.criterion._lpips, task.criterion.smallest_for_lpips = 1.0, [Critic()], 1
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    batch = {"image": torch.rand(2, 1, 8, 8), "mask": mask, "position": torch.arange(2), "start": 0}
    seen = []
    monkeypatch.setattr(task.trained, "decode", lambda z: seen.append(torch.rand(2, 1, *z.shape[2:]).repeat_interleave(
        vae.factor, 2).repeat_interleave(vae.factor, 3).requires_grad_()) or seen[-1])  # fmt: skip
    value, logged = task.losses(batch, task.trained)
    gradient = torch.autograd.grad(value, seen[-1])[0]
    assert (gradient == 0).any() and (gradient != 0).any()
    if not equivariance:
        assert gradient[:, :, 4:].abs().max() == 0 and gradient[:, :, :4].abs().min() > 0
        assert logged["mse"].item() == pytest.approx((seen[-1] - batch["image"])[:, :, :4].square().mean().item())
    batch["mask"] = torch.zeros_like(mask)
    value, logged = task.losses(batch, task.trained)
    assert value.item() == 0 and all(figure.isfinite().all() for figure in logged.values())


def masked_table(n: int, white: int, columns=("mask",)) -> Table:
    masks = np.zeros((n, 8, 8), np.uint8)
    masks[:white, :4] = 255
    images = np.zeros((n, 1, 8, 8), np.uint8)
    return Table(images, {name: masks for name in columns}, Preprocess(1, 8, 8), key="masked")


def test_what_the_mask_hides_is_said_and_nonsense_refused(capsys):
    loss_mask.check({"loss_mask": "mask"}, (masked_table(4, 3), masked_table(2, 2)))
    assert "mask is white: 38% of the pixels; 1 of 4 images are hidden entirely" in capsys.readouterr().out
    loss_mask.check({"loss_mask": None, "unmasked_weight": 0.0}, (masked_table(4, 0), masked_table(2, 0)))
    for config, tables, message in [
        ({"loss_mask": "mask"}, (masked_table(4, 0), masked_table(2, 0)), "black everywhere"),
        ({"loss_mask": "loss_mask"}, (masked_table(4, 3), masked_table(2, 2)), "no such column"),
        ({"loss_mask": "maks"}, (masked_table(4, 3), masked_table(2, 2)), "Did you mean 'mask'"),
        ({"loss_mask": None, "unmasked_weight": 0.1}, (masked_table(4, 3), masked_table(2, 2)), "loss_mask=mask"),
    ]:
        with pytest.raises(UserError, match=message):
            loss_mask.check(config, tables)


def test_soft_masks_are_read_as_weights():
    table = masked_table(2, 2, ("mask", "loss_mask"))
    table.columns["loss_mask"][:] = 51
    batch = table.batch(np.arange(2), ["mask", "loss_mask"])
    assert batch["loss_mask"].shape == (2, 1, 8, 8) and batch["loss_mask"].unique().item() == pytest.approx(0.2)


def test_random_masks_of_inpainting_are_not_those_of_the_loss():
    passed = []
    conditioner = SimpleNamespace(needs=("image",), prepare=lambda batch, encode, seed: passed.append(batch) or batch)
    task = SimpleNamespace(loss_mask=LossMask("mask"), encode=None)
    with pytest.raises(TypeError):  # a namespace isn't called; by then it has the batch
        DiffusionTask.condition(task, {"mask": 1, "image": 2}, {"conditioner": conditioner}, 0, False)
    assert passed == [{"image": 2}]
