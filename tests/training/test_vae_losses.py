"""Perceptual, adversarial and equivariance terms of stage one, by their formulas; and a run that has them all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

import ldm
from ldm.common.errors import UserError
from ldm.networks.discriminator import PatchDiscriminator, adaptive_weight, hinge
from ldm.training import vae_losses
from ldm.training.vae_losses import VAELoss, lpips


def test_pixel_errors():
    images, decoded = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    for pixel, wanted in (("mse", F.mse_loss(decoded, images)), ("l1", F.l1_loss(decoded, images))):
        loss, logged = VAELoss(3, 8, pixel=pixel).reconstruction(decoded, images)
        torch.testing.assert_close(loss, wanted)
        assert not logged
    for wrong in ({"pixel": "l2"}, {"equivariance": 2.0}, {"adversarial": -1.0}, {"adversarial": 0.5}):
        with pytest.raises(UserError, match="loss"):
            VAELoss(3, 8, **wrong)  # the last: 8 pixels are too few for its critic


def test_a_patch_sees_what_pix2pix_gives_it():
    torch.manual_seed(0)
    critic = PatchDiscriminator(3, 8).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    verdicts = critic(images)
    assert verdicts.shape == (1, 1, 14, 14)
    body = nn.Sequential(*(m for m in critic.body if isinstance(m, nn.Conv2d)), critic.conv_out)  # norms see all
    body(images)[0, 0, 7, 7].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70
    many = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(critic(many)[1:2], critic(many[1:2]), rtol=1e-4, atol=1e-5)  # no batch norm


def test_hinge_and_adaptive_weight_are_the_papers():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 0.0])
    assert hinge(real, fake).item() == pytest.approx((2.5 / 3 + 2.5 / 3) / 2)
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    other = nn.Parameter(torch.ones(2))
    reconstruction, adversarial = (layer.square() * other).sum() / 2, (layer * torch.tensor([0.0, 2.0]) * other).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)  # gradients (3, 4) and (0, 2)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight(1e6 * reconstruction, 0 * adversarial, layer).item() == 1e4


def test_one_backward_pass_gives_decoder_and_critic_their_own_gradients():
    """The same as two optimizers' two passes: the decoder's with the critic frozen, the critic's on detached images."""
    torch.manual_seed(0)
    loss = VAELoss(1, 16, adversarial=0.5, adversarial_start=3, critic_channels=8, critic_layers=1)
    decoder = nn.Conv2d(2, 1, 3, padding=1)
    z, images = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16)

    decoded = decoder(z)
    reconstruction = F.mse_loss(decoded, images)
    added, logged = loss.against_critic(reconstruction, decoded, images, decoder.weight, 3)
    (reconstruction + added).backward()
    together = [p.grad.clone() for m in (decoder, loss.critic) for p in m.parameters()]

    other, critic = copy.deepcopy(decoder), copy.deepcopy(loss.critic)
    decoded = other(z)
    reconstruction, verdict = F.mse_loss(decoded, images), -critic(decoded).mean()
    own = torch.autograd.grad(reconstruction, other.weight, retain_graph=True)[0].norm()
    weight = 0.5 * own / (torch.autograd.grad(verdict, other.weight, retain_graph=True)[0].norm() + 1e-4)
    wanted = list(torch.autograd.grad(reconstruction + weight * verdict, other.parameters()))
    judged = F.relu(1 - critic(images)).mean() + F.relu(1 + critic(decoded.detach())).mean()
    wanted += torch.autograd.grad(judged / 2, critic.parameters())
    torch.testing.assert_close(together, wanted)
    torch.testing.assert_close(logged["adversarial_weight"], weight)

    early, _ = loss.against_critic(reconstruction, decoded, images, other.weight, 2)
    assert early.item() == 0 and early.requires_grad  # every parameter has a gradient, of 0


def test_equivariance_transforms_latents_and_images_alike():
    """With latents that are images made smaller, the transformed latents are the transformed images made smaller."""
    loss = VAELoss(1, 32, equivariance=0.5)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    images = torch.stack([x + 0.5 * y, x * y])[:, None]  # smooth
    latents = F.avg_pool2d(images, 4)
    seen, plain = set(), 0
    for start in range(200):
        some, scaled = loss.transformed(latents, images, 4, 0, start)
        if some is latents:
            plain += 1
            continue
        assert scaled.shape[2:] == (4 * some.shape[2], 4 * some.shape[3])
        torch.testing.assert_close(F.avg_pool2d(scaled, 4), some, rtol=0, atol=0.08)
        turned = [torch.rot90(images, k, (2, 3)) for k in range(4)]
        small = [F.interpolate(t, some.shape[2:], mode="area") for t in turned]
        near = [(s - some).abs().mean().item() for s in small]
        seen.add((some.shape[2], near.index(min(near))))
    assert 70 < plain < 130
    assert {k for _, k in seen} == {0, 1, 2, 3} and {h for h, _ in seen} >= {4, 8, 12}
    again = [loss.transformed(latents, images, 4, 0, 7)[0] for _ in range(2)]
    assert torch.equal(*again)
    flat = VAELoss(1, 32, equivariance=1.0, equivariance_turns=False)
    wide = torch.randn(1, 2, 6, 9)
    for start in range(20):
        some, scaled = flat.transformed(wide, torch.randn(1, 1, 12, 18), 2, 0, start)
        assert some.shape[2] <= 6 and some.shape[3] <= 9 and scaled.shape[3] == 2 * some.shape[3]
    off = VAELoss(1, 32)
    assert off.transformed(latents, images, 4, 0, 0)[0] is latents


def without_weights(monkeypatch):
    """torchvision's networks without the weights that would have to be loaded."""
    import torchvision

    for net in ("alexnet", "vgg16", "squeezenet1_1"):
        make = getattr(torchvision.models, net)
        monkeypatch.setattr(torchvision.models, net, lambda *a, make=make, **k: make())


def test_lpips_is_torchmetrics_and_trains_the_decoder(monkeypatch):
    without_weights(monkeypatch)
    torch.manual_seed(0)
    loss = VAELoss(1, 32, perceptual=0.5, perceptual_net="alex")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    decoded = (images + 0.1 * torch.randn_like(images)).clamp(-1, 1).requires_grad_()
    total, logged = loss.reconstruction(decoded, images)
    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")  # the public metric, with the same random weights
    metric.net.load_state_dict(loss._lpips[0].state_dict())
    distance = metric(decoded.detach().repeat(1, 3, 1, 1), images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(logged["lpips"], distance)
    torch.testing.assert_close(total, F.mse_loss(decoded, images) + 0.5 * distance)
    assert distance > 0 and loss.reconstruction(images, images)[1]["lpips"] == 0
    total.backward()
    assert decoded.grad.abs().sum() > F.mse_loss(decoded, images) and not list(loss.parameters())
    assert not loss.state_dict()  # its weights aren't in checkpoints
    assert loss.reconstruction(decoded[..., :16, :16], images[..., :16, :16])[1] == {}  # made too small for it


def test_missing_lpips_weights_are_named(monkeypatch):
    import torchvision

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "vgg16", offline)
    with pytest.raises(UserError, match="ImageNet weights of vgg.*no network.*loss.perceptual=0"):
        lpips("vgg", 3, 32)
    for wrong in (("vg", 3, 32), ("vgg", 4, 32), ("vgg", 3, 8)):
        with pytest.raises(UserError):
            lpips(*wrong)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_all_terms_resumes_bit_for_bit(runs, train, monkeypatch, optimizer):
    from ldm.training.task import Task

    monkeypatch.setattr(vae_losses, "NETS", {"alex": 8})
    monkeypatch.setattr(vae_losses, "lpips", lambda *_: Distance())
    words = [
        "trainer.max_steps=6",
        "checkpoint.every_n_steps=2",
        "trainer.accumulate_grad_batches=2",
        f"optimizer.name={optimizer}",
        "loss.adversarial=0.5",
        "loss.adversarial_start=1",
        "loss.critic_layers=1",
        "loss.critic_channels=8",
        "loss.perceptual=0.1",
        "loss.perceptual_net=alex",
        "loss.equivariance=0.5",
        "ema.lengths=[0.05,0.1]",
        "ema.snapshots=8",
    ]
    whole = train("vae", runs, f"name=all-{optimizer}", *words)
    step, seen = Task.training_step, []

    def killed(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == 9:  # past the checkpoint at 4, in the midst of step 5
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(Task, "training_step", killed)
        train("vae", runs, f"name=broken-{optimizer}", *words)
    broken = train("vae", runs, f"name=broken-{optimizer}", "resume=true", *words)
    last = [torch.load(run / "checkpoints" / "step-00000006.ckpt", weights_only=True) for run in (whole, broken)]
    assert len(seen) == 9 and last[0]["global_step"] == 6  # one optimizer: a step is a step
    assert any(name.startswith("criterion.critic") for name in last[0]["state_dict"])
    for name, tensor in last[0]["state_dict"].items():
        assert torch.equal(tensor, last[1]["state_dict"][name]), name
    for one, other in zip(*(c["optimizer_states"][0]["state"].values() for c in last), strict=True):
        assert all(torch.equal(one[k], other[k]) for k in one)
    for name in ("model", "ema"):
        files = [{p.name: p.read_bytes() for p in (run / name).iterdir()} for run in (whole, broken)]
        assert files[0] == files[1]
    assert not any("critic" in name for name in ldm.load(whole).state_dict())
    metrics = (whole / "metrics.csv").read_text().splitlines()[0]
    assert all(f"train/{name}" in metrics for name in ("adversarial_weight", "critic", "lpips", "mse"))


class Distance(nn.Module):
    def forward(self, a, b):
        return (a.roll(1, 3) - b).abs().mean((1, 2, 3), keepdim=True)
