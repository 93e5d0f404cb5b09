"""Photos of mixed shapes: buckets of one shape, batches out of one bucket, an order that (seed, epoch) fixes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.data import Folder
from ldm.data.caches.latents import cached_latents
from ldm.data.datamodule import BatchModule
from ldm.data.order import bucket_rows
from ldm.data.storage.buckets import assign, shapes
from ldm.networks import AutoencoderKL
from tests.data.sources import is_sample_image, sample_image, train_both

SIZES = [(16, 16)] * 12 + [(12, 24)] * 9 + [(40, 20)] * 7  # height, width


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for i, size in enumerate(SIZES):
        sample_image(i, *size).save(folder / f"{i:02d}.png")
        rows.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def source(photos, **options) -> Folder:
    return Folder(str(photos), **({"size": 16, "buckets": True, "bucket_step": 4, "bucket_least": 3} | options))


def rows_of(position, number, sizes, batch_size, seed):
    return bucket_rows(position, number=number, sizes=sizes, batch_size=batch_size, seed=seed)


def test_shapes_have_about_one_area_and_sides_that_divide():
    found = shapes(512, 64)
    assert (512, 512) in found and (704, 320) not in found and len(set(found)) == len(found)
    for height, width in found:
        assert height % 64 == width % 64 == 0 and 0.75 < height * width / 512**2 <= 1
        assert max(height / width, width / height) <= 2


def test_each_image_goes_to_the_nearest_shape_that_enough_images_have():
    known = [(32, 16), (24, 20), (20, 24), (16, 32)]
    sizes = [(200, 100)] * 5 + [(100, 200)] * 4 + [(100, 115)]
    assert assign(sizes, known).tolist() == [0] * 5 + [3] * 4 + [2]
    assert assign(sizes, known, least=2).tolist() == [0] * 5 + [3] * 5
    assert assign(sizes, known, least=9).tolist() == [0] * 10  # one for all


def test_every_sample_comes_equally_often_whatever_its_bucket():
    sizes, batch = [23, 10, 3], 4
    counts = [np.zeros(n, int) for n in sizes]
    batches = [rows_of(np.arange(4) + 4 * k, k, sizes, batch, seed=5) for k in range(180)]  # 20 epochs
    for bucket, rows in batches:
        counts[bucket] += np.bincount(rows, minlength=sizes[bucket])
    assert all(19 <= c <= 21 for c in np.concatenate(counts))
    assert sum(c.sum() for c in counts) == 720
    turns = [bucket for bucket, _ in batches]
    assert len({tuple(turns[i : i + 9]) for i in range(0, 180, 9)}) > 3  # not one pattern over and over


def test_ranks_together_see_what_one_process_does():
    sizes, batch = [9, 14], 6
    for k in range(12):
        bucket, rows = rows_of(np.arange(6) + 6 * k, k, sizes, batch, seed=1)
        halves = [rows_of(np.arange(3) + 6 * k + 3 * rank, k, sizes, batch, seed=1) for rank in range(2)]
        assert [half[0] for half in halves] == [bucket] * 2
        assert np.concatenate([half[1] for half in halves]).tolist() == rows.tolist()


def test_batches_are_of_one_shape_and_resume(photos, tmp_path):
    train, val = source(photos).tables(tmp_path / "cache")
    shapes_of = {table.images.shape[2:] for table in train.buckets}
    assert len(shapes_of) == 3 and (16, 16) in shapes_of
    assert sum(map(len, train.buckets)) + sum(map(len, val.buckets)) == len(SIZES)

    def first(position: int, n: int) -> list[dict]:
        module = BatchModule(train, val, ["image", "text"], 4, seed=0)
        module.load_state_dict({"position": position})
        return list(itertools.islice(iter(module.train_dataloader()), n))

    whole, resumed = first(0, 30), first(48, 18)
    for a, b in zip(whole[12:], resumed, strict=True):
        assert torch.equal(a["image"], b["image"]) and a["text"] == b["text"]
    seen = set()
    for batch in whole:
        seen.add(tuple(batch["image"].shape[2:]))
        for image, text in zip(batch["image"].numpy(), batch["text"], strict=True):
            assert is_sample_image(image, int(text.removeprefix("number ")))
    assert seen == shapes_of
    index = np.concatenate([b["index"].numpy() for b in whole])
    assert index.min() == 0 and index.max() == sum(map(len, train.buckets)) - 1


def test_latents_are_cached_by_bucket_and_whitened_together(photos, tmp_path):
    train, _ = source(photos).tables(tmp_path / "cache")
    torch.manual_seed(0)
    vae = AutoencoderKL(3, 2, channels=8, multipliers=[1], stem=4).eval().requires_grad_(False)
    made = cached_latents(train, vae, tmp_path)
    assert len(list((tmp_path / "latents").iterdir())) == 3
    mean, std = (
        torch.cat(
            [torch.from_numpy(np.array(getattr(part, name))).movedim(1, 0).flatten(1) for part in made.buckets], 1
        )
        for name in ("mean", "std")
    )  # (C, all places of all buckets)
    torch.testing.assert_close(mean.mean(1), made.channel_mean, atol=1e-5, rtol=1e-4)
    whole = mean.var(1, correction=0) + std.square().mean(1)
    torch.testing.assert_close(whole.sqrt(), made.channel_std, atol=1e-5, rtol=1e-4)


def test_photos_of_mixed_shapes_train_both_stages(photos, tmp_path, capsys):
    words = [f"data.root={photos}", "data.size=16", "data.buckets=true", "data.bucket_step=8", "data.bucket_least=3"]
    model = train_both(tmp_path / "runs", "data=folder", *words)
    assert "buckets: " in capsys.readouterr().out
    assert model("number 3", steps=2, size=(8, 24))[0].size == (24, 8)


def test_an_unreadable_image_is_counted(photos, tmp_path):
    (photos / "03.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="1 of 28 images can't be used"):
        source(photos).tables(tmp_path / "cache")


def test_buckets_need_a_size():
    with pytest.raises(UserError, match="buckets=true needs data.size"):
        Folder("x", buckets=True)
