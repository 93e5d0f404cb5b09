"""What `vae=auto` and `network=auto` choose: by arithmetic, so without training."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.common.registry import build
from ldm.networks import AutoencoderKL, Cond
from ldm.training.auto import choose, count, settle

TWO_CORES = 70e9
H100 = 0.3 * 989.4e12
FIVE_MINUTES = 300.0
SIZES = [(32, 32), (64, 64), (96, 128), (128, 128), (256, 256)]


def budget(seconds: float | None = FIVE_MINUTES, speed: float = TWO_CORES, images: int = 600) -> choose.Budget:
    return choose.Budget(speed, "gpu" if speed > 1e12 else "cpu", seconds, None, images)


def inputs(latent_channels: int, **more: Any) -> dict[str, Any]:
    return {"in_channels": latent_channels, "context_dim": None, "vector_dim": None, "concat_channels": 0} | more


def both(size: tuple[int, int], given: choose.Budget) -> tuple[AutoencoderKL, dict[str, Any], float]:
    """The autoencoder that is chosen, the network on its latents, and what an image costs this."""
    vae = build(choose.choose_vae(3, size, given), in_channels=3)
    places = (size[0] // vae.factor, size[1] // vae.factor)
    spec = choose.choose_network(places, inputs(vae.latent_channels, concat_channels=8), given)
    return vae, spec, count.network_flops(spec, places, inputs(vae.latent_channels, concat_channels=8))


@pytest.mark.parametrize("size", SIZES)
def test_five_minutes_on_two_cores_are_1500_steps_of_each_size(size: tuple[int, int]) -> None:
    _, spec, flops = both(size, budget())
    batch = choose.choose_batch(flops, budget(), choose.ENOUGH)
    steps = budget().steps_in_time(batch * flops)
    assert spec["class"] == "DiT" and steps is not None and steps >= 1500 and batch >= 16


def test_photographs_of_96x128_train_at_60_images_a_second() -> None:
    vae, _, flops = both((96, 128), budget())
    assert vae.factor == 8 and TWO_CORES / flops >= 60


def test_the_time_of_the_demo_gives_the_transformer_that_was_measured_for_it() -> None:
    given = budget(420.0, images=20_000)
    spec = choose.choose_network((8, 8), inputs(6, context_dim=128, vector_dim=128), given)
    assert spec == {"class": "DiT", "patch": 2, "channels": 192, "depth": 6, "heads": 4}


def test_more_time_a_faster_machine_and_more_images_give_larger_networks() -> None:
    def width(given: choose.Budget) -> int:
        return choose.choose_network((16, 16), inputs(16), given)["channels"]

    assert width(budget()) < width(budget(24 * 3600.0)) == 256  # no wider: 600 images would be learned by heart
    assert width(budget(24 * 3600.0, H100, 600)) == 256
    assert width(budget(24 * 3600.0, H100, 10_000)) == 384
    assert width(budget(24 * 3600.0, H100, 1_000_000)) == 768
    assert width(budget(None)) == 192 and width(budget(None, H100, 1_000_000)) == 384


def test_an_autoencoder_is_as_large_as_time_allows_and_never_larger_than_its_images() -> None:
    short, long = (choose.choose_vae(3, (64, 64), budget(seconds)) for seconds in (60.0, 3600.0))
    assert count.vae_flops(short, 3, (64, 64)) < count.vae_flops(long, 3, (64, 64))
    for channels in (1, 3, 5):
        for size in SIZES:
            vae = build(choose.choose_vae(channels, size, budget()), in_channels=channels)
            assert vae.latent_channels < channels * vae.factor**2 and not any(side % vae.factor for side in size)


@pytest.mark.parametrize(("size", "factor"), [((28, 28), 4), ((100, 100), 4), ((512, 512), 32), ((30, 30), 4)])
def test_the_factor_divides_the_size_and_is_4_where_none_does(size: tuple[int, int], factor: int) -> None:
    assert choose.factor_of(size, 256) == factor


def test_options_of_the_unet_and_values_a_level_mean_the_unet() -> None:
    assert settle.is_unet({"channels": [64, 128]}) and settle.is_unet({"attention": False})
    assert not settle.is_unet({}) and not settle.is_unet({"channels": 64, "patch": 2, "depth": 2})


def config(**vae: Any) -> dict[str, Any]:
    return {
        "vae": {"class": "AutoVAE"} | vae,
        "batch_size": "auto",
        "optimizer": {"lr": "auto"},
        "trainer": {"max_steps": -1, "max_time": "00:00:05:00", "devices": 1, "accelerator": "cpu"},
    }


def test_given_sizes_are_kept_and_the_others_are_those_of_vae_small(capsys: pytest.CaptureFixture) -> None:
    free, started = config(latent_channels=3), config(channels=8)
    settle.settle_vae(free, {}, channels=3, size=(64, 64), images=600)
    settle.settle_vae(started, {}, channels=3, size=(64, 64), images=600)
    assert free["vae"]["latent_channels"] == 3 and free["vae"]["stem"] == 4
    assert started["vae"] == {"class": "AutoencoderKL"} | settle.SMALL | {"channels": 8}
    assert "vae=auto: factor 4 with 3 latent channels" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_choice_whatever_the_machine_is_now(capsys: pytest.CaptureFixture) -> None:
    again = config()
    before = {"vae": {"class": "AutoencoderKL", "latent_channels": 5}, "batch_size": 7, "optimizer": {"lr": 0.5}}
    settle.settle_vae(again, before, channels=3, size=(64, 64), images=600)
    assert (again["vae"], again["batch_size"], again["optimizer"]["lr"]) == (before["vae"], 7, 0.5)
    assert not capsys.readouterr().out


def test_too_few_steps_are_reported_before_the_first_with_what_to_change(capsys: pytest.CaptureFixture) -> None:
    short = config(channels=[512, 512], stem=1)
    settle.settle_vae(short, {}, channels=3, size=(256, 256), images=600)
    output = capsys.readouterr().out
    assert "will fit into the training time" in output and "warning: fewer than 150 steps" in output
    assert "trainer.max_time" in output and "data.size=" in output


def test_a_run_limited_by_steps_says_how_long_they_take(capsys: pytest.CaptureFixture) -> None:
    long = config()
    long["trainer"] |= {"max_time": None, "max_steps": 100_000}
    settle.settle_vae(long, {}, channels=3, size=(64, 64), images=600)
    minutes = 100_000 * 64 * count.vae_flops(long["vae"], 3, (64, 64)) / choose.Budget.of(long, 600).speed / 60
    assert f"100000 steps of 64 will take about {minutes:.0f} minutes" in capsys.readouterr().out


def test_the_blocks_of_a_transformer_are_counted_as_if_all_were_built() -> None:
    spec = {"class": "DiT", "channels": 16, "heads": 2}
    two, three, five = (count.network_flops(spec | {"depth": n}, (4, 6), inputs(4, context_dim=8)) for n in (2, 3, 5))
    assert five - three == pytest.approx(2 * (three - two))
    network = build(spec | {"depth": 3}, **inputs(4, context_dim=8))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 4, 4, 6), torch.zeros(2), Cond(tokens=torch.zeros(2, 24, 8)))
    assert three == 1.5 * counter.get_total_flops()


def test_counting_takes_networks_of_one_place_and_leaves_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    small = {"class": "UNet", "channels": [8, 8], "groups": 8}
    assert (
        count.network_flops(small, (2, 2), inputs(2)) > 0 and count.vae_flops({"class": "AutoencoderKL"}, 3, (2, 2)) > 0
    )
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_the_users_own_is_trained_without_a_forecast(capsys: pytest.CaptureFixture) -> None:
    own = {"network": {"class": "MyUNet"}} | config()
    settle.settle_network(own, {}, latent_size=(4, 4), inputs=inputs(4), images=600)
    assert (own["batch_size"], own["optimizer"]["lr"]) == (64, 1e-3) and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("has", "channels", "side", "weights"),
    [(True, 3, 64, (1.0, 0.5)), (False, 3, 64, (0.0, 0.0)), (True, 4, 64, (0.0, 0.0)), (True, 3, 8, (0.0, 0.0))],
)
def test_lpips_and_critic_are_used_where_its_weights_are_and_fit(
    has: bool, channels: int, side: int, weights: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "has_weights", lambda net: has)
    config: dict[str, Any] = {"loss": {"perceptual": "auto", "adversarial": "auto", "perceptual_net": "vgg"}}
    said: list[str] = []
    settle.settle_loss(config, {}, channels=channels, side=side, say=said.append)
    assert (config["loss"]["perceptual"], config["loss"]["adversarial"]) == weights
    assert ("without LPIPS" in said[0]) == (weights == (0.0, 0.0))


def test_a_loss_that_was_settled_or_given_is_kept() -> None:
    config: dict[str, Any] = {"loss": {"perceptual": "auto", "adversarial": 0.3}}
    settle.settle_loss(config, {"loss": {"perceptual": 1.0, "adversarial": 0.5}}, channels=3, side=64, say=print)
    assert config["loss"] == {"perceptual": 1.0, "adversarial": 0.3}
