"""The latent cache: keyed by what it depends on, made once, with the moments and their statistics."""

import hashlib
import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.artifact import encoder_hash, model_hash
from ldm.common.errors import UserError
from ldm.data import Table
from ldm.data.caches import latents
from ldm.data.caches.latents import cached_latents
from ldm.images import Preprocess
from ldm.networks import AutoencoderKL


def table(n: int = 37, key: str = "data") -> Table:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 1, 8, 12), np.uint8)
    return Table(pixels, {"label": np.arange(n)}, Preprocess(1, 8, 12), key)


def vae(seed: int = 0, scale: float = 0.3) -> AutoencoderKL:
    torch.manual_seed(seed)
    made = AutoencoderKL(1, 3, channels=8, multipliers=[1, 1], stem=2).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    made.preprocess = Preprocess(1, 8, 12)
    return made


def folders(root) -> list[str]:
    return sorted(entry.name for entry in (root / "latents").iterdir())


@pytest.fixture
def encodings(monkeypatch) -> list[int]:
    """How many images each call of `encode` got."""
    counts: list[int] = []
    encode = AutoencoderKL.encode

    def counted(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(AutoencoderKL, "encode", counted)
    return counts


def test_it_holds_the_moments_of_every_image(tmp_path):
    data, model = table(), vae()
    cache = cached_latents(data, model, tmp_path, batch_size=10)
    index = np.array([36, 0, 17, 0])
    batch = cache.batch(index, ["label"])
    posterior = model.encode(data.batch(index, ["image"])["image"])
    torch.testing.assert_close(batch["latent_mean"], posterior.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch["latent_std"], posterior.std, atol=1e-5, rtol=1e-5)
    assert batch["label"].tolist() == index.tolist()
    assert set(batch) == {"latent_mean", "latent_std", "label"}  # pixels only where requested
    assert torch.equal(cache.batch(index, ["image"])["image"], data.batch(index, ["image"])["image"])
    assert len(cache) == 37


def test_statistics_count_the_means_spread_and_the_posteriors(tmp_path, monkeypatch):
    monkeypatch.setattr(latents._statistics, "__defaults__", (10,))  # several chunks
    cache = cached_latents(table(), vae(scale=0.5), tmp_path)
    mean, std = (torch.from_numpy(np.array(a)).double() for a in (cache.mean, cache.std))
    torch.testing.assert_close(cache.channel_mean.double(), mean.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
    wanted = (mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(cache.channel_std.double(), wanted, atol=1e-6, rtol=1e-5)

    torch.manual_seed(0)  # what a training run sees, whitened, has mean 0 and std 1
    draws = mean + std * torch.randn(200, *mean.shape, dtype=torch.float64)
    whitened = (draws - cache.channel_mean[:, None, None]) / cache.channel_std[:, None, None]
    torch.testing.assert_close(whitened.mean((0, 1, 3, 4)), torch.zeros(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(whitened.std((0, 1, 3, 4)), torch.ones(3).double(), atol=0.05, rtol=0)


def test_a_channel_that_carries_nothing_does_not_divide_by_zero(tmp_path):
    model = vae()
    model.quant_conv.weight.zero_()
    model.quant_conv.bias.fill_(-100)
    cache = cached_latents(table(), model, tmp_path)
    assert (cache.channel_std > 0).all()


def test_it_is_made_once(tmp_path, encodings):
    first = cached_latents(table(), vae(), tmp_path, batch_size=16)
    assert encodings == [16, 16, 5]
    again = cached_latents(table(), vae(), tmp_path)
    assert sum(encodings) == 37
    assert np.array_equal(again.mean, first.mean) and torch.equal(again.channel_std, first.channel_std)
    assert isinstance(again.mean, np.memmap)


def test_another_first_stage_or_data_is_another_cache(tmp_path, encodings):
    for data, model in [
        (table(), vae()),
        (table(key="other data"), vae()),
        (table(), vae(seed=1)),
    ]:
        cached_latents(data, model, tmp_path)
    assert len(folders(tmp_path)) == 3 and sum(encodings) == 3 * 37
    nearly = vae()
    nearly.encoder.conv_out.bias[0] += 1e-6
    cached_latents(table(), nearly, tmp_path)
    assert len(folders(tmp_path)) == 4


class Killed(Exception):
    pass


def at_batch(monkeypatch, number: int, event) -> None:
    """Calls `event` before the batch of this number, from 1 on, is read."""
    gather, read = Table.gather, []

    def counted(self, index, keys, draw=None):
        read.append(index)
        if len(read) == number:
            event()
        return gather(self, index, keys, draw)

    monkeypatch.setattr(Table, "gather", counted)


def kill() -> None:
    raise Killed


def test_one_that_was_not_finished_is_made_again(tmp_path, encodings, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_batch(patch, 2, kill)
        cached_latents(table(), vae(), tmp_path, batch_size=16)
    encodings.clear()
    cache = cached_latents(table(), vae(), tmp_path, batch_size=16)
    assert encodings == [16, 16, 5] and (cache.std > 0).all()
    assert len(folders(tmp_path)) == 1  # nothing half is left


def test_of_two_that_start_together_one_encodes_and_the_other_waits(tmp_path, monkeypatch, encodings):
    wanted = cached_latents(table(), vae(), tmp_path / "calm", batch_size=16)
    encodings.clear()
    others: list = []
    thread = threading.Thread(target=lambda: others.append(cached_latents(table(), vae(), tmp_path / "busy")))

    def begin():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # it waits

    at_batch(monkeypatch, 2, begin)
    cache = cached_latents(table(), vae(), tmp_path / "busy", batch_size=16)
    thread.join(20)
    assert encodings == [16, 16, 5]
    for made in (cache, *others):
        assert np.array_equal(made.mean, wanted.mean) and np.array_equal(made.std, wanted.std)
        assert torch.equal(made.channel_std, wanted.channel_std)
    assert len(others) == 1
    assert folders(tmp_path / "busy") == folders(tmp_path / "calm")


def test_every_process_may_read_it(tmp_path):
    cached_latents(table(), vae(), tmp_path)
    (name,) = folders(tmp_path)
    folder = tmp_path / "latents" / name
    assert os.stat(folder).st_mode & 0o055 == 0o055
    assert json.loads((folder / "latents.json").read_text())["n"] == 37


def test_float16_is_another_cache_of_half_the_size_and_gives_float32(tmp_path, encodings):
    whole, half = (cached_latents(table(), vae(), tmp_path, dtype=dtype) for dtype in ("float32", "float16"))
    assert sum(encodings) == 2 * 37 and len(folders(tmp_path)) == 2
    assert half.mean.dtype == half.std.dtype == np.float16 and whole.mean.dtype == np.float32
    assert half.mean.nbytes * 2 == whole.mean.nbytes
    index = np.array([36, 0, 17])
    a, b = whole.batch(index, ["label"]), half.batch(index, ["label"])
    for name in ("latent_mean", "latent_std"):
        assert b[name].dtype == torch.float32 and not torch.equal(a[name], b[name])
        torch.testing.assert_close(b[name], a[name], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(half.channel_std, whole.channel_std, atol=0, rtol=1e-3)
    again = cached_latents(table(), vae(), tmp_path, dtype="float16")
    assert sum(encodings) == 2 * 37 and again.mean.dtype == np.float16


def test_the_cache_of_before_there_was_a_choice_is_the_one_of_float32(tmp_path):
    """What a manifest holds and how its folder is called must stay, or every cache would be made again."""
    cached_latents(table(), vae(), tmp_path, dtype="float32")
    (name,) = folders(tmp_path)
    assert name == hashlib.sha256(f"{encoder_hash(vae())} data".encode()).hexdigest()[:20]
    about = json.loads((tmp_path / "latents" / name / "latents.json").read_text())
    assert set(about) == {"first_stage", "data", "n", "channel_mean", "channel_std", "bytes"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cache_named_by_the_whole_first_stage_is_taken_too(tmp_path, monkeypatch, encodings, dtype):
    with monkeypatch.context() as before:
        before.setattr(latents, "encoder_hash", model_hash)  # as versions before the encoder alone counted
        old = cached_latents(table(), vae(), tmp_path, dtype=dtype)
    found = cached_latents(table(), vae(), tmp_path, dtype=dtype)
    assert sum(encodings) == 37 and len(folders(tmp_path)) == 1 and found.reused and not old.reused
    assert np.array_equal(found.mean, old.mean) and torch.equal(found.channel_std, old.channel_std)


def test_the_encoder_alone_names_it(tmp_path, encodings):
    """Another decoder, or other images that the first stage was trained on, change no latent; how these images are
    prepared is in their own key."""
    model = vae()
    cached_latents(table(), model, tmp_path)
    for name, tensor in model.weights_of(model.DECODING).items():
        model.get_parameter(name).copy_(tensor + 1)
    model.preprocess = Preprocess(1, 16, 16)
    assert cached_latents(table(), model, tmp_path).reused and sum(encodings) == 37
    model.encoder.conv_in.bias[0] += 1e-6
    assert not cached_latents(table(), model, tmp_path).reused and sum(encodings) == 2 * 37


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, "float16", r"image 0 \(a.png\) are too large for float16: use latents_dtype=float32"),
        (float("nan"), "float16", r"no finite latents for image 0 \(a.png\)"),
        (float("inf"), "float32", r"no finite latents for image 0 \(a.png\).*evaluate.py"),
    ],
)
def test_latents_that_are_no_numbers_are_refused(tmp_path, value, dtype, message):
    broken = vae()
    broken.quant_conv.bias[0] = value
    with pytest.raises(UserError, match=message):
        cached_latents(replace(table(), names=["a.png"]), broken, tmp_path, dtype=dtype)
    if np.isfinite(value):
        assert cached_latents(table(), broken, tmp_path).mean.max() > 65504  # float32 takes it


def test_the_first_stage_is_on_the_named_device_while_it_encodes(tmp_path, monkeypatch):
    came: list[str] = []
    encode, model = AutoencoderKL.encode, vae()
    monkeypatch.setattr(AutoencoderKL, "to", lambda self, device: came.append(f"to {torch.device(device)}"))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: came.append("encode") or encode(self, images))
    cached_latents(table(), model, tmp_path, device="cuda:1")
    assert came == ["to cuda:1", "encode", "to cpu"]
    cached_latents(table(), model, tmp_path, device="cuda:1")  # nothing to encode
    assert len(came) == 3


def test_alternative_captions_are_drawn_through_it(tmp_path):
    data = replace(table(3), columns={"text": [["a", "b"], ["c"], ["d", "e"]]})
    cache = cached_latents(data, vae(), tmp_path)
    index = np.arange(3)
    assert cache.batch(index, ["text"])["text"] == ["a", "c", "d"]
    assert cache.batch(index, ["text"], np.array([0.9, 0.9, 0.1]))["text"] == ["b", "c", "d"]
