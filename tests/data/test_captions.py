"""The caption cache: each caption through the encoder once, and the encoder gone while stage two trains."""

import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.conditioning import Conditioner, FrozenText
from ldm.data import Table
from ldm.data.caches import captions
from ldm.data.caches.captions import cached_states, remember_captions
from ldm.images import Preprocess
from tests.conditioning.encoders import write_t5

pytest.importorskip("transformers")
TEXTS = ["a cat", "an owl on a tree", "猫", "a cat", ["two", "ways"]]


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The captions that went through an encoder."""
    seen: list[str] = []
    encode = FrozenText.encode

    def counted(self, values):
        seen.extend(values)
        return encode(self, values)

    monkeypatch.setattr(FrozenText, "encode", counted)
    return seen


def part(t5: Path, **options) -> FrozenText:
    return FrozenText(str(t5), "byt5", **options)


def table(texts=TEXTS) -> Table:
    return Table(np.zeros((len(texts), 1, 4, 4), np.uint8), {"text": texts}, Preprocess(1, 4, 4), "key")


@pytest.mark.parametrize("options", [{}, {"pooled": True}, {"length": 12, "masked": False}])
def test_states_are_the_encoders_own(t5, tmp_path, options):
    made = part(t5, **options)
    states = cached_states(made, ["a cat", "an owl", ""], tmp_path, batch_size=2)
    for requested in (["a cat"], ["", "an owl", "", "a cat"]):
        got, wanted = states.get(requested), made.encode(requested)
        assert (got.mask is None) == (wanted.mask is None)
        if wanted.mask is not None:
            assert torch.equal(got.mask, wanted.mask)
            wanted = wanted.map(lambda t, m=wanted.mask: t * m[..., None] if t.ndim == 3 else t)
        torch.testing.assert_close(got.tokens, wanted.tokens, atol=1e-5, rtol=1e-4)
        if wanted.vector is not None:
            torch.testing.assert_close(got.vector, wanted.vector, atol=1e-5, rtol=1e-4)
    assert states.get(["a cat", "never seen"]) is None


def test_each_caption_is_encoded_once_whatever_the_run(t5, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(captions, "PIECE", 3)
    conditioner = Conditioner({"text": part(t5)})
    remember_captions(conditioner, [table()], tmp_path)
    assert sorted(encoded) == sorted(["", "a cat", "an owl on a tree", "猫", "two", "ways"])
    encoded.clear()
    again = Conditioner({"text": part(t5)})
    remember_captions(again, [table(), table(["a cat", "a new one"])], tmp_path)
    assert encoded == ["a new one"]
    encoded.clear()
    again.parts["text"](["ways", "a new one"], torch.tensor([True, False]))
    again.null(3)
    assert encoded == [] and not again.parts["text"]._held
    again.parts["text"](["a prompt of the user's"])
    assert encoded == ["a prompt of the user's"]  # the encoder is read again


def test_the_encoder_is_on_the_named_device_while_it_encodes(t5, tmp_path, encoded, monkeypatch):
    came: list[str] = []
    conditioner = Conditioner({"text": part(t5)})
    monkeypatch.setattr(FrozenText, "to", lambda self, device: came.append(f"{torch.device(device)} {len(encoded)}"))
    remember_captions(conditioner, [table()], tmp_path, "cuda:1")
    assert came == ["cuda:1 0", "cpu 6"]
    known = conditioner.parts["text"].known
    again = pickle.loads(data := pickle.dumps(known))
    assert len(data) < 500 and torch.equal(again.get(["a cat", "ways"]).tokens, known.get(["a cat", "ways"]).tokens)


def test_it_is_memory_mapped_and_shared_with_the_average(t5, tmp_path):
    from ldm.training.averages import ema

    conditioner = Conditioner({"text": part(t5)})
    remember_captions(conditioner, [table()], tmp_path)
    known = conditioner.parts["text"].known
    assert all(isinstance(piece["states"], np.memmap) for piece in known.pieces)
    assert sum(len(piece["states"]) for piece in known.pieces) == sum(
        len(text.encode()) + 1 for text in ("", "a cat", "an owl on a tree", "猫", "two", "ways")
    )  # nothing is padded
    assert ema.clone(conditioner).parts["text"].known is known


def test_another_encoder_or_way_of_taking_states_is_another_cache(t5, tmp_path, encoded):
    other = write_t5(tmp_path / "other", seed=1)
    for made in (part(t5), part(other), part(t5, length=9), part(t5, masked=False, length=9), part(t5, pooled=True)):
        cached_states(made, ["a cat"], tmp_path)
    assert encoded == ["a cat"] * 5 and len(list((tmp_path / "captions").iterdir())) == 5


def test_an_interrupted_or_damaged_piece_is_made_again(t5, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(captions, "PIECE", 2)
    made = part(t5)

    def killed(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(captions, "atomic_write", killed)
        cached_states(made, ["a", "b", "c"], tmp_path)
    encoded.clear()
    cached_states(made, ["a", "b", "c"], tmp_path)
    assert encoded == ["a", "b", "c"]
    damaged = next((tmp_path / "captions").glob("*/*/states.raw"))
    damaged.write_bytes(damaged.read_bytes()[:-4])
    encoded.clear()
    states = cached_states(made, ["a", "b", "c"], tmp_path)
    assert 1 <= len(encoded) < 3 and states.get(["c", "a", "b"]) is not None


def test_stage_two_trains_without_the_encoder(t5, tmp_path, encoded, monkeypatch):
    from ldm.commands import cli
    from ldm.training.ldm_task import DiffusionTask

    held, losses, steps = [], DiffusionTask.losses, []
    encoder = FrozenText.encoder.fget

    def noted(self):
        made = encoder(self)
        if not held:
            held.append(weakref.ref(made))
        return made

    def checked(self, batch, network):
        assert held and held[0]() is None, "the encoder is still in memory"
        steps.append(len(encoded))
        return losses(self, batch, network)

    monkeypatch.setattr(FrozenText, "encoder", property(noted))
    monkeypatch.setattr(DiffusionTask, "losses", checked)
    words = f"data=emoji data.n=40 data.val_n=8 data.size=16 runs_dir={tmp_path} logger=none trainer.max_steps=6"
    words += (
        " batch_size=4 samples.n=2 first_stage=identity network=unet network.channels=[8] network.heads=2 name=frozen"
    )
    words += " network.attention=true diffusion.sampling.steps=2"
    words += f" conditioner=frozen_text conditioner.text.path={t5} conditioner.text.tokenizer=byt5"
    cli.run("train_ldm", words.split())
    splits = (file.parent for file in (tmp_path / "cache/data").glob("*/*/table.json"))
    distinct = {"", *(text for split in splits for text in Table.load(split).columns["text"])}
    assert len(encoded) == len(set(encoded)) == len(distinct)
    assert len(steps) > 6 and set(steps) == {len(distinct)}  # validation and images too
