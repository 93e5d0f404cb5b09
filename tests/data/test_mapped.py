"""What is sent to another process: names of files instead of their contents, and the same batches there."""

import io
import itertools
import multiprocessing
import pickle
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data import Digits, Emoji, Folder, Table
from ldm.data.caches.labels import numbered_as
from ldm.data.caches.latents import cached_latents
from ldm.data.datamodule import BatchModule, TrainBatches
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.cached import cached
from ldm.data.storage.lazy import Joined, Json
from ldm.data.storage.mapped import file_map
from ldm.data.storage.table import REPEATS, new_array
from ldm.images import Preprocess
from ldm.networks import AutoencoderKL
from ldm.training.finetune.kind import with_word

N = 600
MOST = 10_000  # bytes of a pickled table


def table(key: str = "key", side: int = 8, start: int = 0) -> Table:
    rows = np.arange(start, start + N)
    images = np.random.default_rng(start).integers(0, 256, (N, 3, side, 8), np.uint8)
    maps = images[:, 0] % 5
    columns = {
        "label": rows % 7,
        "map": maps,
        "mask": images[:, 1],
        "control": images[:, :1],
        "text": [f"number {i} with some more words" if i % 2 else [f"{i} one way", f"{i} another"] for i in rows],
        "weights": [None if i % 3 else float(i) for i in rows],  # neither array nor strings
    }
    names = [f"some/folder/{i:06d}.png" for i in rows]
    return Table(
        images, columns, Preprocess(3, side, 8), key, names, tuple(f"class {i}" for i in range(7)), tuple("abcde")
    )


def on_disk(made: Table, folder: Path) -> Table:
    return cached(folder, made.key, lambda _: (made, replace(made, key=f"{made.key}-val")))[0]


def relabelled(made: Table) -> Table:
    changed = numbered_as(made, [f"class {i}" for i in range(8)][::-1], "the run")
    assert changed.columns["label"].tolist() == [7 - label for label in made.columns["label"].tolist()]
    return changed


def latents_of(made: Table, folder: Path):
    torch.manual_seed(0)
    vae = AutoencoderKL(3, 2, channels=8, multipliers=[1], stem=4).eval().requires_grad_(False)
    return cached_latents(made, vae, folder)


def sent(data):
    """As it comes to a process that was started again, and how many bytes it took."""
    file = io.BytesIO()
    ForkingPickler(file).dump(data)
    return pickle.loads(file.getvalue()), len(file.getvalue())


KINDS = {
    "a table": lambda made, folder: made,
    "latents": latents_of,
    "buckets": lambda made, folder: Buckets.of([made, on_disk(table("wide", 4, N), folder)], "both"),
    "latents of buckets": lambda made, folder: latents_of(KINDS["buckets"](made, folder), folder),
    "relabelled": lambda made, folder: relabelled(made),
    "relabelled buckets": lambda made, folder: relabelled(KINDS["buckets"](made, folder)),
    "latents relabelled": lambda made, folder: latents_of(relabelled(made), folder),
    "a trigger word": lambda made, folder: with_word((made, made), "sks")[0],
    "a trigger word alone": lambda made, folder: with_word((replace(made, columns={}),) * 2, "sks")[0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_sent_as_the_names_of_its_files(tmp_path, kind):
    made = KINDS[kind](on_disk(table(), tmp_path), tmp_path)
    again, size = sent(made)
    assert size < MOST
    pairs = zip(getattr(made, "buckets", None) or [made], getattr(again, "buckets", None) or [again], strict=True)
    for one, other in [(made, again), *pairs]:
        assert_same_batches(one, other)
    assert getattr(made, "table", made).names == getattr(again, "table", again).names


def assert_same_batches(one, other) -> None:
    columns, others = (getattr(some, "table", some).columns for some in (one, other))
    assert columns.keys() == others.keys() and columns.get("weights") == others.get("weights")
    rows, chosen = np.array([0, len(one) - 1, 17, 17]), np.array([0.9, 0.1, 0.9, 0.2])
    keys = ["image", *(key for key in columns if key != "weights")]
    a, b = one.batch(rows, keys, chosen), other.batch(rows, keys, chosen)
    assert a.keys() == b.keys() and "text" in a
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]


def test_a_table_in_memory_is_sent_whole():
    made = table()
    again, size = sent(made)
    assert size > made.images.nbytes
    assert_same_batches(made, again)


def test_the_tables_of_sources_are_small(tmp_path, photos):
    emoji = Emoji(size=16, n=40, val_n=4, objects=["cat", "dog"])
    for source in (Digits(), emoji, Folder(str(photos)), Folder(str(photos), size=8, buckets=True, bucket_least=3)):
        for made in source.tables(tmp_path / "cache"):
            again, size = sent(made)
            assert size < MOST and np.array_equal(again.images, made.images)
            assert again.columns.keys() == made.columns.keys() and list(again.names) == list(made.names)


@pytest.mark.parametrize("kind", ["a table", "buckets", "latents"])
def test_training_with_repeats_is_sent_small_and_visits_the_same(tmp_path, kind):
    """Where each sample's visits end is counted again."""
    plain = table()
    made = on_disk(replace(plain, columns={**plain.columns, REPEATS: np.arange(N) % 4}), tmp_path)
    made = KINDS[kind](made, tmp_path) if kind != "buckets" else Buckets.of([made, made], "both")
    batches = TrainBatches(made, ["label"], 0, 8)
    again, size = sent(batches)
    assert size < MOST and again.visits[0].total == (np.arange(N) % 4).sum()
    for positions in (np.arange(8), np.arange(8000, 8008)):
        assert torch.equal(again[positions]["index"], batches[positions]["index"])


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(400):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"number {i} with a caption of some length")
    return folder


def test_any_whole_part_of_a_map_is_a_place_in_its_file(tmp_path):
    array = new_array(tmp_path / "a.npy", np.int64, (5000, 3))
    array[:] = np.arange(15000).reshape(5000, 3)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    raw = np.memmap(tmp_path / "a.npy", np.uint8, "r", offset=5000)
    for part in (array, read, read[:40], read[1000:], np.asarray(read)[7], read.view(np.uint8), raw[9000:]):
        place = file_map(part)
        assert place is not None and np.array_equal(place.open(), part) and len(pickle.dumps(place)) < 500
    assert file_map(read[::2]) is None and file_map(read[:, 1]) is None and file_map(read[np.arange(4)]) is None
    assert file_map(np.load(tmp_path / "a.npy", mmap_mode="c")) is None  # what was changed there is in memory alone
    assert file_map(read[:0]) is None and file_map(np.arange(4)) is None
    (tmp_path / "a.npy").unlink()
    assert file_map(read) is None


def test_what_was_written_to_a_map_is_read_by_whom_it_is_sent_to(tmp_path):
    made = Table(new_array(tmp_path / "images.npy", np.uint8, (4, 1, 2, 2)), {}, Preprocess(1, 2, 2), "k")
    made.images[2] = 9
    again, _ = sent(made)
    assert np.array_equal(again.images, made.images) and isinstance(again.images, np.memmap)


def test_a_list_of_a_file_is_read_when_it_is_used(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1, null, 3]")
    rows, again = Json(path), sent(Json(path))[0]
    assert rows == again == [1, None, 3] and rows[-1] == 3 and rows[1:] == [None, 3]
    assert len(sent(rows)[0]) == 3  # of one that was read too


def test_joined_sequences_are_one():
    joined = Joined([[], ["a", "b"], (), ["c"]])
    assert joined == ["a", "b", "c"] and joined[-1] == "c" and len(joined) == 3 and len(Joined([])) == 0
    with pytest.raises(IndexError):
        joined[3]


def test_a_process_started_again_reads_the_same_batches(tmp_path):
    made = on_disk(table(), tmp_path)
    rows, keys = np.array([3, 599, 3]), ["image", "label", "text", "map"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(made.batch, (rows, keys))
    for key, value in made.batch(rows, keys).items():
        assert torch.equal(value, there[key]) if isinstance(value, torch.Tensor) else value == there[key]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])  # of macOS and Windows; of Linux from Python 3.14 on
def test_workers_started_again_give_the_same_batches(tmp_path, start):
    made = latents_of(with_word((on_disk(table(), tmp_path),) * 2, "sks")[0], tmp_path)
    module = BatchModule(made, made, ["image", "label", "text", "mask"], 8, seed=3)
    here = module.train_dataloader()
    there = DataLoader(here.dataset, None, sampler=here.sampler, num_workers=1, multiprocessing_context=start)
    for a, b in itertools.islice(zip(here, there, strict=True), 3):
        assert a["text"] == b["text"] and all("sks" in text for text in a["text"])
        assert all(torch.equal(a[k], b[k]) for k in ("latent_mean", "image", "label", "mask", "index", "position"))
