"""Labels keep a model's own numbers, whatever order the data are listed in."""

import shutil

import numpy as np
import pytest
from PIL import Image

import ldm
from ldm.commands import cli
from ldm.common.errors import UserError
from ldm.data.caches.labels import check_labelled, numbered_as
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.table import Table
from ldm.images import Preprocess


def table(labels: list[int], classes: tuple[str, ...]) -> Table:
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    return Table(images, {"label": np.array(labels)}, Preprocess(1, 2, 2), "key", classes=classes)


def test_classes_go_by_name():
    changed = numbered_as(table([0, 1, 2, 3, 3], ("1", "2", "3", "10")), ["1", "10", "2", "3"], "the run")
    assert changed.columns["label"].tolist() == [0, 2, 3, 1, 1] and changed.classes == ("1", "10", "2", "3")
    assert changed.key == "key"


def test_what_is_numbered_so_already_or_has_no_names_stays():
    same = table([0, 1], ("a", "b"))
    assert numbered_as(same, ["a", "b"], "") is same and numbered_as(same, [], "") is same


def test_a_run_that_has_learnt_classes_continues_with_labels_only():
    """Folders that were classes and count as dates or a phone's now, say."""
    bare = Table(np.zeros((2, 1, 2, 2), np.uint8), {}, Preprocess(1, 2, 2), "key")
    with pytest.raises(UserError, match=r"run r has learned classes \(a, b\), but the data have no .*classes=true"):
        check_labelled(bare, ["a", "b"], "run r")
    check_labelled(bare, [], "run r")
    check_labelled(table([0, 1], ("a", "b")), ["a", "b"], "run r")


def test_some_of_the_classes_will_do():
    assert numbered_as(table([0, 0], ("dog", "unused")), ["cat", "dog"], "the base").columns["label"].tolist() == [1, 1]


def test_numbers_are_positions_for_a_model_that_has_names():
    assert numbered_as(table([1, 0], ("0", "1")), ["cat", "dog"], "the base").columns["label"].tolist() == [1, 0]
    with pytest.raises(UserError, match="class '0', which the base doesn't know"):
        numbered_as(table([0], ("0",)), ["1", "2"], "the base")


def test_an_unknown_class_is_reported():
    with pytest.raises(UserError, match="class 'dgo', which the base doesn't know.*Did you mean 'dog'"):
        numbered_as(table([0, 1], ("cat", "dgo")), ["cat", "dog"], "the base")


def test_buckets_are_numbered_alike():
    parts = [table([0], ("1", "2", "10")), table([1, 2], ("1", "2", "10"))]
    changed = numbered_as(Buckets.of(parts, "all"), ["1", "10", "2"], "the run")
    assert isinstance(changed, Buckets) and changed.columns["label"].tolist() == [2, 1]
    assert [part.columns["label"].tolist() for part in changed.buckets] == [[0], [2, 1]]


TINY = (
    "batch_size=4 samples.n=2 logger=none trainer.limit_val_batches=1 first_stage=identity network=unet "
    "network.channels=[8] network.heads=2 diffusion.sampling.steps=2 data=folder"
)


@pytest.mark.slow
def test_a_run_and_a_fine_tuning_keep_the_numbers_of_a_model_of_before(tmp_path, monkeypatch):
    """A run that was started when classes were in the order of words: 1, 10, 2."""
    for name in ("1", "2", "10"):
        for i in range(4):
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (25 * int(name), i, 0)).save(tmp_path / "d" / name / f"{i}.png")
    words = [*TINY.split(), f"data.root={tmp_path / 'd'}", f"runs_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}"]
    with monkeypatch.context() as before:
        before.setattr("ldm.data.preparing.labels._natural", lambda word: word)
        cli.run("train_ldm", [*words, "name=run", "trainer.max_steps=2"])
    (tmp_path / "ldm" / "run" / "DONE").unlink()
    shutil.rmtree(tmp_path / "cache")
    seen: set[tuple[int, int]] = set()
    gather = Table.gather

    def watched(self, index, keys, draw=None):
        seen.update(zip(self.columns["label"][index].tolist(), self.images[index][:, 0, 0, 0].tolist(), strict=True))
        return gather(self, index, keys, draw)

    monkeypatch.setattr(Table, "gather", watched)
    cli.run("train_ldm", [*words, "name=run", "trainer.max_steps=6", "resume=true"])
    cli.run("train_ldm", [*words, "finetune=full", f"base={tmp_path / 'ldm' / 'run'}", "trainer.max_steps=2"])
    assert seen == {(0, 25), (1, 250), (2, 50)}
    for name in ("run", "run-full"):
        assert ldm.load(tmp_path / "ldm" / name).labels == {"1": 0, "10": 1, "2": 2}
