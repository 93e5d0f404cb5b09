"""The measure of emoji scenes against the nearest legal one."""

import itertools
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ldm.common.errors import UserError
from ldm.data.sources.emoji import BACKGROUNDS, Emoji
from ldm.data.sources.scenes import Scenes, draw_any
from ldm.evaluation.measures.legal_scenes import (
    CAP,
    best_places,
    by_objects,
    fit,
    grain_of,
    summary,
    variance_of_places,
)

SOURCES = {32: Emoji(), 64: Emoji(size=64)}


def measured(emoji: Emoji, images: np.ndarray, scenes: Scenes) -> np.ndarray:
    return fit(emoji, torch.from_numpy(images), scenes).psnr


def noisy(images: np.ndarray, std: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, std, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    files = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    return np.stack([np.asarray(file.filter(ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1) for file in files])


def swapped(scenes: Scenes) -> Scenes:
    two = scenes.second >= 0
    first, second = np.where(two, scenes.second, scenes.first), np.where(two, scenes.first, scenes.second)
    return Scenes(first, second, scenes.relation, scenes.background, scenes.size)


@pytest.mark.parametrize("size", [32, 64])
def test_real_scenes_reach_the_cap_at_their_own_places(size: int) -> None:
    emoji = SOURCES[size]
    scenes = draw_any(emoji.held_out, 200, 7)
    images, _ = emoji.compose(scenes, 3)
    started = time.process_time()
    fitted = fit(emoji, torch.from_numpy(images), scenes)
    assert time.process_time() - started < 8  # a few seconds for what a demo measures
    assert (fitted.psnr == CAP).all() and (fitted.grain == 0).all()
    assert (fitted.nearest == images).all()
    there = np.stack([np.ones(200, bool), scenes.second >= 0], 1)
    assert (fitted.places == emoji.places(scenes, 3))[there].all()
    assert set(by_objects(fitted)) == {"all", "one object", "two objects"}
    one = images.copy()
    one[:, 0, 0, 0] ^= 1
    assert (measured(emoji, one, scenes) < CAP).all()  # nothing but an exact copy reaches it


def test_the_nearest_is_the_nearest_of_all_legal_scenes() -> None:
    """Object by object it is found where a search through every scene finds it, in images that aren't legal."""
    emoji = Emoji(size=32, jitter="pixels")
    scenes = draw_any(emoji.held_out, 12, 5)
    images = noisy(blurred(emoji.compose(swapped(scenes), 2)[0], 1), 30)
    found = fit(emoji, torch.from_numpy(images), scenes)
    shifts = emoji.placing.shifts
    for i in range(len(scenes)):
        one, at = scenes[i : i + 1], np.argwhere(emoji.placing.free(scenes[i : i + 1])[0])
        every = np.array(list(itertools.product(shifts, repeat=len(at))))  # (M, free axes)
        places = np.repeat(emoji.placing.middles(one), len(every), 0)
        places[:, at[:, 0], at[:, 1]] += every
        legal, _ = emoji.compose_at(one[np.zeros(len(every), int)], places)
        errors = np.square(legal.astype(float) - images[i]).mean((1, 2, 3))
        assert found.psnr[i] == pytest.approx(10 * np.log10(255**2 / errors.min()))
        assert (found.nearest[i] == legal[errors.argmin()]).all()


@pytest.mark.parametrize("size", [32, 64])
def test_what_the_eye_calls_worse_is_ranked_worse(size: int) -> None:
    """One pixel beyond the jitter, blur, noise, a double, and the wrong order: none passes, more of each is worse."""
    emoji = SOURCES[size]
    scenes = draw_any(emoji.held_out, 60, 11)
    scenes = scenes[scenes.second >= 0][:30]
    images, _ = emoji.compose(scenes, 4)
    edge = emoji.placing.middles(scenes) + emoji.placing.shifts[-1] * emoji.placing.free(scenes)
    beyond = [emoji.compose_at(scenes, edge + far * emoji.placing.free(scenes))[0] for far in (1, 2, 3)]
    moved = emoji.compose_at(scenes, edge - emoji.placing.step * emoji.placing.free(scenes))[0]
    on_edge = emoji.compose_at(scenes, edge)[0]
    double = ((on_edge.astype(int) + moved + 1) // 2).astype(np.uint8)
    db = {
        "real": measured(emoji, images, scenes),
        "moved within the jitter": measured(emoji, moved, scenes),
        **{f"{far + 1} beyond": measured(emoji, some, scenes) for far, some in enumerate(beyond)},
        **{f"noise {std}": measured(emoji, noisy(images, std), scenes) for std in (2, 4, 8, 16, 40)},
        **{f"blur {radius}": measured(emoji, blurred(images, radius), scenes) for radius in (0.5, 1, 2)},
        "double": measured(emoji, double, scenes),
        "swapped": measured(emoji, emoji.compose(swapped(scenes), 4)[0], scenes),
    }
    medians = {name: float(np.median(values)) for name, values in db.items()}
    assert medians["real"] == medians["moved within the jitter"] == CAP
    families = (
        ["real", "1 beyond"],
        ["real", "noise 2", "noise 4", "noise 8", "noise 16", "noise 40"],
        ["real", "blur 0.5", "blur 1", "blur 2"],
        ["real", "double"],
    )
    for order in families:
        assert (np.diff(np.stack([db[name] for name in order]), axis=0) < 0).all(), order  # of every image
        assert medians[order[-1]] > medians["swapped"]
    assert CAP > medians["1 beyond"] > medians["2 beyond"] > medians["3 beyond"] > medians["swapped"]
    assert medians["noise 4"] > 24 > medians["double"] and medians["blur 1"] < 24 and medians["1 beyond"] < 20
    assert (db["swapped"] < 20).all() and (db["swapped"] < db["noise 16"]).all()


def test_grain_is_noise_of_the_background_alone() -> None:
    emoji = SOURCES[32]
    scenes = draw_any(emoji.held_out, 40, 2)
    scenes = scenes[scenes.background != list(BACKGROUNDS).index("white")]  # where noise would be cut off
    images, _ = emoji.compose(scenes, 2)
    grainy = fit(emoji, torch.from_numpy(noisy(images, 4)), scenes)
    assert np.median(grainy.grain) == pytest.approx(4, rel=0.1)
    assert summary(grainy)["grain"] == pytest.approx(4, rel=0.1)
    darker = (images.astype(int) - np.array([20, 5, 0])[:, None, None]).clip(0).astype(np.uint8)
    tinted = fit(emoji, torch.from_numpy(darker), scenes)
    assert np.median(tinted.grain) == 0 and np.median(tinted.psnr) < 30
    difference = np.zeros((1, 3, 2, 2))
    difference[0, :, 0] = [3, -3]
    assert grain_of(difference, np.array([[[True, True], [False, False]]])) == pytest.approx(3)


def test_shares_and_the_worst_are_those_of_the_images() -> None:
    emoji = SOURCES[32]
    scenes = draw_any(emoji.held_out, 40, 3)
    images, _ = emoji.compose(scenes, 1)
    images[:4] = noisy(images[:4], 80)
    images[4:10] = noisy(images[4:10], 20)  # 22 dB
    fitted = fit(emoji, torch.from_numpy(images), scenes)
    figures = summary(fitted)
    assert (figures["above 20 dB"], figures["above 24 dB"]) == (0.9, 0.75)
    assert figures["median"] == CAP and figures["worst 5 %"] < 20
    assert set(fitted.worst(4)) == {0, 1, 2, 3} and set(fitted.worst(10)[4:]) == set(range(4, 10))
    alone = by_objects(fitted)["one object"]["above 20 dB"]
    assert alone == pytest.approx((fitted.psnr > 20)[scenes.second < 0].mean())


@pytest.mark.parametrize("size", [32, 64])
def test_places_of_the_data_vary_as_the_data_do(size: int) -> None:
    emoji = SOURCES[size]
    scenes = draw_any(emoji.held_out, 20, 3)
    images = [emoji.compose(scenes, seed)[0] for seed in range(12)]
    places = np.stack([best_places(emoji, one, scenes) for one in images])
    assert variance_of_places(emoji, places, scenes) == pytest.approx(1, abs=0.2)
    assert variance_of_places(emoji, places[:1].repeat(3, 0), scenes) == 0
    middles = emoji.placing.middles(scenes)
    extremes = np.stack([middles + emoji.placing.free(scenes) * shift for shift in emoji.placing.shifts])
    spread = emoji.placing.shifts.var(ddof=1) / emoji.placing.shifts.var()
    assert variance_of_places(emoji, extremes, scenes) == pytest.approx(spread)
    with pytest.raises(UserError, match="at least two"):
        variance_of_places(emoji, places[:1], scenes)


def test_other_images_are_refused() -> None:
    emoji = SOURCES[32]
    scenes = draw_any(emoji.held_out, 2, 0)
    with pytest.raises(UserError, match="can't be compared with 2 scenes"):
        fit(emoji, torch.zeros(2, 3, 64, 64, dtype=torch.uint8), scenes)
    with pytest.raises(UserError, match="8 bits"):
        fit(emoji, torch.zeros(2, 3, 32, 32), scenes)
