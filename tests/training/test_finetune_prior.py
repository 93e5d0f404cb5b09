"""Images by the base among those that it is fine-tuned on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.data import Table
from ldm.images import Preprocess
from ldm.training.finetune import run
from ldm.training.finetune.prior import with_prior

PROMPTS = ["a cat", "a dog on grass"]


@register
class StubBase(nn.Module):
    """Gives image k all in the value 10 k + seed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.conditioner = SimpleNamespace(inputs=("text",))
        self.asked: list[list[str]] = []

    def forward(self, prompts, seed, output):
        self.asked.append(prompts)
        return np.stack([np.full((4, 5, 3), 10 * k + seed, np.uint8) for k in range(len(prompts))])


def tables(n: int = 3) -> tuple[Table, Table]:
    images = np.full((n, 3, 4, 5), 99, np.uint8)
    columns = {"text": [f"sks {i}" for i in range(n)], "label": np.arange(n)}
    made = Table(images, columns, Preprocess(3, 4, 5), "own", [f"{i}.png" for i in range(n)], ("a", "b", "c"))
    return made, made


def test_the_bases_images_and_prompts_stand_behind_the_own(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog on grass\n")
    given, base = tables(), StubBase()
    train, val = with_prior(given, base, path=str(tmp_path / "prompts.txt"), cache=tmp_path, seed=2)
    assert train.images[:, 0, 0, 0].tolist() == [99, 99, 99, 2, 12] and train.images.shape == (5, 3, 4, 5)
    assert train.columns["text"] == ["sks 0", "sks 1", "sks 2", *PROMPTS] and list(train.columns) == ["text"]
    assert train.names == ["0.png", "1.png", "2.png", *PROMPTS] and train.classes == ("a", "b", "c")
    assert isinstance(train.images, np.memmap) and val is given[1]
    again, _ = with_prior(given, base, path=str(tmp_path / "prompts.txt"), cache=tmp_path, seed=2)
    assert base.asked == [PROMPTS] and again.key == train.key != given[0].key  # kept
    with_prior(given, base, path=str(tmp_path / "prompts.txt"), cache=tmp_path, seed=3)
    assert len(base.asked) == 2


def test_frames_of_the_bases_images_are_their_own(tmp_path):
    """Beside images that were cropped, what the base generates counts as made at its size."""
    (tmp_path / "prompts.txt").write_text("a cat")
    frames = np.tile(np.array([[40, 50, 3, 2, 4, 5]], np.int32), (3, 1))
    framed = replace(tables()[0], frames=frames)
    train, _ = with_prior((framed, framed), StubBase(), path=str(tmp_path / "prompts.txt"), cache=tmp_path, seed=0)
    assert train.frames.shape == (4, 6) and (train.frames[:3] == frames).all()
    assert train.frames[3].tolist() == list(framed.preprocess.frame(4, 5))


def test_the_base_is_on_the_named_device_while_it_generates(tmp_path, monkeypatch):
    came: list[str] = []
    (tmp_path / "prompts.txt").write_text("a cat")
    monkeypatch.setattr(StubBase, "to", lambda self, device: came.append(f"{torch.device(device)} {len(self.asked)}"))
    with_prior(tables(), StubBase(), path=str(tmp_path / "prompts.txt"), cache=tmp_path, seed=0, device="cuda:1")
    assert came == ["cuda:1 0", "cpu 1"]


def test_without_a_file_nothing_changes_and_a_wrong_one_is_reported(tmp_path):
    given, base = tables(), StubBase()
    assert with_prior(given, base, path=None, cache=tmp_path, seed=0) is given
    with pytest.raises(UserError, match="can't be read"):
        with_prior(given, base, path=str(tmp_path / "none.txt"), cache=tmp_path, seed=0)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="one per line"):
        with_prior(given, base, path=str(tmp_path / "empty.txt"), cache=tmp_path, seed=0)
    (tmp_path / "full.txt").write_text("a cat")
    base.conditioner.inputs = ("label",)
    with pytest.raises(UserError, match="without captions"):
        with_prior(given, base, path=str(tmp_path / "full.txt"), cache=tmp_path, seed=0)


def test_balance_beside_prompts_of_a_prior_is_refused(monkeypatch):
    monkeypatch.setattr(run, "precheck", lambda config: "base")
    config = {"finetune": {"class": "FullFinetune"}, "balance": "label", "prior_path": "prompts.txt"}
    with pytest.raises(UserError, match="balance= can't be used with prior_path="):
        run.main(config)
