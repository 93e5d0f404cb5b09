"""Stage one that starts from another autoencoder: its start, what stays, and what depends on it."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import ldm
from ldm import artifact
from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError
from ldm.config.checking import refuse_sizes_beside_base
from ldm.data.sources.digits import Digits
from ldm.interop.parts.vae_config import to_diffusers
from ldm.networks import AutoencoderKL
from ldm.training import ldm_run, vae_base, vae_run
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.vae_task import VAETask, psnr

DECODER = ["base=digits", "train=decoder", "optimizer.warmup_steps=1"]


@pytest.fixture(scope="module")
def better(runs, train):
    """A decoder-only run on the digits' autoencoder, resumed without its base, and what it printed."""
    words = ["name=better", *DECODER, "optimizer.schedule=constant", "optimizer.lr=0.01"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as without_base:
        train("vae", runs, *words, "trainer.max_steps=2")
        without_base.setattr(vae_base, "load", None)
        run = train("vae", runs, *words, "trainer.max_steps=40", "resume=true")
    return run, printed.getvalue()


def halves(path):
    vae = ldm.load(path)
    vae = getattr(vae, "first_stage", vae)
    return vae.weights_of(vae.ENCODING), vae.weights_of(vae.DECODING)


def quality(path) -> float:
    """PSNR of the reconstructions of all validation images, in dB."""
    _, val = Digits(8).tables(path.parents[1] / "cache" / "data")
    vae, images = ldm.load(path), val.batch(np.arange(len(val)), ["image"])["image"]
    return psnr((vae.decode(vae.encode(images).mode()) - images).square().mean((1, 2, 3))).mean().item()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_encoder_stays_bit_equal_and_the_decoder_gets_better(runs, better):
    run, printed = better
    (encoding, decoding), (before, was) = halves(run), halves(runs / "vae" / "digits")
    assert same(encoding, before) and encoding and not same(decoding, was)
    assert not any(torch.equal(decoding[key], was[key]) for key in decoding)
    checkpoint = torch.load(sorted((run / "checkpoints").glob("*.ckpt"))[-1], weights_only=True)
    for copy in ("trained", "average"):
        assert same({k: checkpoint["state_dict"][f"{copy}.{k}"] for k in before}, before)
    start, end = quality(runs / "vae" / "digits"), quality(run)
    assert end > start + 0.5
    assert f"before training: {start:.2f} dB PSNR, the mean of 359 validation images" in printed
    assert "beta, the weight of the KL term, isn't used" in printed and "kl_weight" not in printed
    assert "encoder is the base's, bit for bit" in printed and "decoder=better" in printed


def test_the_run_records_its_base_and_has_its_sizes(runs, better):
    config = yaml.safe_load((better[0] / "config.yaml").read_text())
    base = ldm.load(runs / "vae" / "digits")
    assert (config["base"], config["base_hash"]) == ("digits", model_hash(base))
    assert config["vae"] == {k: v for k, v in artifact.spec_of(base).items() if k != "in_channels"}
    assert artifact.spec_of(ldm.load(better[0])) == artifact.spec_of(base)


def test_the_loss_of_a_frozen_encoder_has_no_kl_and_gives_it_no_gradient(runs):
    vae = ldm.load(runs / "vae" / "digits").requires_grad_(True)
    task = VAETask(vae, vae.preprocess, 1e3, None, 0, True, learning_rate=LearningRate(lr=1e-3, total_steps=1))
    batch = {"image": torch.rand(4, 1, 8, 8), "position": torch.arange(4), "start": 0}
    loss, logged = task.losses(batch, task.trained)
    torch.testing.assert_close(loss, logged["mse"])
    assert logged["kl"] > 1e-3  # a thousandfold it would be seen
    loss.backward()
    assert {name.partition(".")[0] for name, p in vae.named_parameters() if p.grad is not None} == {
        part for part in vae.DECODING if getattr(vae, part) is not None
    }
    assert all(a is p for a, p in zip(task.average.encoder.parameters(), vae.encoder.parameters(), strict=True))


def test_stage_two_continues_with_the_better_decoder_and_encodes_nothing_again(
    runs, train, better, monkeypatch, capsys
):
    shutil.copytree(runs / "ldm" / "digits", runs / "ldm" / "on")
    monkeypatch.setattr(ldm_run, "load", lambda *a, **k: encodes_nothing(ldm.load(*a, **k)))
    words = ["name=on", "first_stage=better", "optimizer.lr=0.01", "resume=true"]
    run = train("ldm", runs, *words, "trainer.max_steps=7")
    printed = capsys.readouterr().out
    assert "the cache is reused, and nothing is encoded" in printed and "resumed" in printed
    assert same(halves(run)[1], halves(better[0])[1])
    checkpoint = torch.load(run / "checkpoints" / "step-00000007.ckpt", weights_only=True)
    assert checkpoint["ldm_depends_on"]["first_stage"] == encoder_hash(ldm.load(better[0]))


def encodes_nothing(vae):
    def refuse(images):
        raise AssertionError("encoded again")

    vae.encode = refuse
    return vae


def test_a_model_takes_the_decoder_and_is_saved_with_it(runs, better, tmp_path):
    model, images = ldm.load(runs / "ldm" / "digits"), torch.rand(2, 1, 8, 8) * 2 - 1
    latents, generated, known = model.encode(images), model(labels=[3], output="pt"), model_hash(model)
    model.load_decoder(better[0])
    assert torch.equal(model.encode(images), latents)
    assert not torch.equal(model(labels=[3], output="pt"), generated)
    assert model.base_hash == known  # LoRAs of the model as it was still fit
    again = ldm.load(ldm.save(model, tmp_path / "saved"))
    assert torch.equal(again(labels=[3], output="pt"), model(labels=[3], output="pt"))
    assert same(halves(tmp_path / "saved")[1], halves(better[0])[1])


def test_another_encoders_decoder_is_refused(runs, train, tmp_path):
    model = ldm.load(runs / "ldm" / "digits")
    other = ldm.load(runs / "vae" / "digits")
    other.quant_conv.bias[0] += 1e-7
    with pytest.raises(UserError, match="can't decode this model's latents, since the encoders differ"):
        model.load_decoder(ldm.save(other, tmp_path / "other"))
    pixels = ldm.load(runs / "ldm" / "digits")
    pixels.first_stage = ldm.networks.Identity(2)
    with pytest.raises(UserError, match="works on pixels"):
        pixels.load_decoder(tmp_path / "other")


def test_a_diffusers_folder_is_started_from_bit_for_bit(tmp_path, runs, config):
    vae = AutoencoderKL(1, 2, channels=[8, 8], groups=4)
    folder = tmp_path / "sd" / "vae"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_diffusers(vae, 8)))
    save_file(vae.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    made = config("train_vae", runs, f"base={folder}")
    base = vae_base.settle(made, {}, 1)
    started = vae_run.initial_autoencoder(made, base, Digits(8).tables(runs / "cache" / "data")[0])
    assert same(dict(started.state_dict()), dict(vae.state_dict())) and started.encoder.conv_norm_out.num_groups == 4
    assert all(p.requires_grad for p in started.parameters())
    assert base is not None and made["base_hash"] == model_hash(base) and encoder_hash(base) == encoder_hash(vae)
    vae.encoder.conv_norm_out.num_groups = 8
    assert encoder_hash(vae) != encoder_hash(base)  # the same weights, read otherwise


def test_a_run_is_resumed_by_the_words_that_it_began_with(runs, config):
    made = config("train_vae", runs, "base=digits")
    recorded = {"base": "digits", "base_hash": "h", "vae": {"class": "AutoencoderKL", "channels": [8]}}
    assert vae_base.settle(made, recorded, 1) is None
    assert made["vae"] == recorded["vae"] and made["base_hash"] == "h"
    with pytest.raises(UserError, match="began with base=digits, and can only be resumed so"):
        vae_base.settle(made | {"base": None}, recorded, 1)
    with pytest.raises(UserError, match="began without base="):
        vae_base.settle(made, {"vae": {}}, 1)


def test_the_rate_is_less_for_wide_networks():
    rates = [vae_base.rate_for(AutoencoderKL(1, 2, channels=width, multipliers=[1])) for width in (8, 64, 128)]
    assert rates == [1e-3, 1e-3, 5e-4]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["train=decoder"], "train=decoder needs an autoencoder"),
        (["base=digit"], "there is no run 'digit' of train_vae.py. Did you mean 'digits'"),
        (["base=digits", "data=emoji", "data.size=8"], "takes images of 1 channels, but the data's have 3"),
    ],
)
def test_what_cant_be_gone_on_from_is_refused(runs, config, words, printed, monkeypatch):
    made = config("train_vae", runs, "name=refused", *words)
    if "data=emoji" in words:
        with pytest.raises(UserError, match=printed):
            vae_base.settle(made, {}, 3)
    else:
        with pytest.raises(UserError, match=printed):
            vae_run.main(made)


def test_sizes_beside_a_base_are_refused():
    for words, named in ((["++vae.channels=8"], "vae.channels="), (["vae=small"], "vae=")):
        with pytest.raises(
            UserError, match=f"^{named} can't be combined with base=digits: the base's weights fit only its own sizes"
        ):
            refuse_sizes_beside_base({"base": "digits"}, words)
        refuse_sizes_beside_base({"base": None}, words)
    refuse_sizes_beside_base({"base": "digits"}, ["vae=auto", "++train=decoder"])
