"""Two frozen text encoders together: their joined penultimate states and the second one's projected pooled state."""

import copy
import shutil

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.conditioning import Conditioner, FrozenText, JoinedText
from ldm.conditioning.on_host import States
from ldm.data import Table
from ldm.data.caches.captions import remember_captions
from ldm.images import Preprocess

pytest.importorskip("transformers")
CAPTIONS = ["a cat", "", "a dog above a very long cat indeed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.interop.models import write_two_encoders

    return write_two_encoders(tmp_path_factory.mktemp("two"))


def part_of(folder, zeros=True, **options):
    last_but_one = {"length": 16, "masked": False, "clip_skip": 2, "final_norm": False}
    second = {"pooled": True, "projected": True} | options
    encoders = [
        FrozenText(str(folder / f"text_encoder{s}"), str(folder / f"tokenizer{s}"), **last_but_one | more)
        for s, more in (("", {}), ("_2", second))
    ]
    return JoinedText(encoders, zeros)


def expected(folder, captions):
    """Tokens and pooled state by transformers itself."""
    import transformers

    states = []
    for suffix, cls in (("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")):
        model = getattr(transformers, cls).from_pretrained(folder / f"text_encoder{suffix}")
        words = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        ids = words(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states.append(model(ids, output_hidden_states=True))
    return torch.cat([s.hidden_states[-2] for s in states], 2), states[1].text_embeds


def test_states_are_joined_over_channels_and_the_seconds_projection_is_the_vector(folder):
    part = part_of(folder)
    tokens, pooled = expected(folder, CAPTIONS)
    cond = part(CAPTIONS)
    assert (part.token_dim, part.vector_dim) == (40, 20) == (tokens.shape[2], pooled.shape[1])
    torch.testing.assert_close(cond.tokens, tokens)
    torch.testing.assert_close(cond.vector, pooled)
    assert cond.mask is None and cond.tokens[1].abs().min() > 0, "the empty caption is a caption"


@pytest.mark.parametrize("zeros", [True, False])
def test_what_stands_for_no_caption(zeros, folder):
    part = part_of(folder, zeros)
    null, dropped = part(part.null_values(1)), part(CAPTIONS[:2], torch.tensor([True, False]))
    empty = part([""])
    for cond in (null, dropped.map(lambda t: t[:1])):
        torch.testing.assert_close(cond.tokens, torch.zeros_like(empty.tokens) if zeros else empty.tokens)
        torch.testing.assert_close(cond.vector, torch.zeros_like(empty.vector) if zeros else empty.vector)
    torch.testing.assert_close(dropped.tokens[1:], empty.tokens)


def test_training_has_the_states_beforehand_and_lets_go_of_both_encoders(folder, tmp_path):
    part = part_of(folder)
    wanted = part(CAPTIONS, torch.tensor([False, False, True]))
    images = np.zeros((3, 3, 8, 8), np.uint8)
    table = Table(images, {"text": CAPTIONS}, Preprocess(3, 8, 8), "k-train")
    conditioner = Conditioner({"text": part})
    remember_captions(conditioner, [table], tmp_path)
    assert not any(one.is_held for one in part.encoders)
    part.drop_prob = 0.5
    positions = torch.arange(64)
    chosen = {"text": [CAPTIONS[0]] * 64, "position": positions}
    read = conditioner.reader(0)(chosen, True)
    assert isinstance(read["ready"]["text"], States) and "text" not in read["drop"]
    absent = (read["ready"]["text"].tokens == 0).all((1, 2))
    assert 10 < absent.sum() < 54 and torch.equal(absent, conditioner.coins(0, positions)["text"])
    ready = Conditioner({"text": part}).reader(0)({"text": CAPTIONS, "position": positions[:3]}, False)["ready"]["text"]
    torch.testing.assert_close(ready.tokens[:2], wanted.tokens[:2])
    torch.testing.assert_close(ready.vector[:2], wanted.vector[:2])
    copied = copy.deepcopy(conditioner)
    torch.testing.assert_close(copied({"text": CAPTIONS}).tokens[:2], wanted.tokens[:2])
    assert not any(one.is_held for one in copied.parts["text"].encoders)


def test_both_encoders_are_bundled_each_with_its_tokenizer(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    part = part_of(source)
    wanted = part(["a cat"])
    out = tmp_path / "model"
    out.mkdir()
    for one in part.encoders:
        one.bundle(out)
    assert {path.name for path in out.iterdir()} == {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    again = build(spec_of(part))
    shutil.rmtree(source)
    for one in again.encoders:
        one.locate(out)
    cond = again(["a cat"])
    assert torch.equal(cond.tokens, wanted.tokens) and torch.equal(cond.vector, wanted.vector)


def test_a_prompt_that_is_too_long_is_reported_once(folder):
    cuts = part_of(folder).cut(CAPTIONS)
    assert [cut.caption for cut in cuts] == [CAPTIONS[2]]


def test_by_a_yaml_dims_and_hashes_are_read_off_the_encoders(folder):
    paths = {"path": str(folder / "text_encoder"), "tokenizer": str(folder / "tokenizer"), "length": 16}
    derived = JoinedText.derive(None, {"encoders": [paths, paths]})
    part = JoinedText(**derived)
    assert part.token_dim == 32 and all(one.sha256 for one in part.encoders)


def test_what_cant_be_joined_is_refused(folder):
    with pytest.raises(UserError, match="two encoders or more"):
        JoinedText([FrozenText(str(folder / "text_encoder"))])
    with pytest.raises(UserError, match="masked=false and the same length"):
        part_of(folder, masked=True)
    with pytest.raises(UserError, match="projected=True concerns the pooled state"):
        part_of(folder, pooled=False)
