"""Captions of emoji scenes in several languages."""

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.data.sources.emoji import BACKGROUNDS, DEFAULT_OBJECTS, Emoji
from ldm.data.sources.languages import ARABIC, ARABIC_COLOURS, CHINESE, CHINESE_COLOURS, SENTENCES
from ldm.data.sources.scenes import Scenes, draw_scenes

ALL = ("en", "zh", "ar")


def index(name: str) -> int:
    return DEFAULT_OBJECTS.index(name)


def say(language: str, *row: int) -> str:
    return SENTENCES[language](DEFAULT_OBJECTS, tuple(BACKGROUNDS), *row)


def test_sentences():
    big_cat = index("cat"), -1, 0, list(BACKGROUNDS).index("red"), 1
    assert say("en", *big_cat) == "a big cat on a red background"
    assert say("zh", *big_cat) == "红色背景上的一只大猫"
    assert say("ar", *big_cat) == "قطة كبيرة على خلفية حمراء"  # the adjective is feminine, as the cat
    assert say("ar", index("dog"), -1, 0, 0, 0) == "كلب صغير على خلفية حمراء"
    pair = index("cat"), index("rocket"), 1, list(BACKGROUNDS).index("blue"), -1
    assert say("zh", *pair) == "蓝色背景上，一只猫在一枚火箭的上方"
    assert say("ar", *pair) == "قطة فوق صاروخ على خلفية زرقاء"
    assert say("zh", pair[0], pair[1], 2, pair[3], -1).endswith("一枚火箭的左边")


def test_every_default_object_and_background_has_a_name_of_its_own():
    for words in (CHINESE, ARABIC):
        assert set(words) == set(DEFAULT_OBJECTS) and len({str(v) for v in words.values()}) == len(words)
    for words in (CHINESE_COLOURS, ARABIC_COLOURS):
        assert set(words) == set(BACKGROUNDS) and len(set(words.values())) == len(words)


def test_each_language_says_the_same_of_each_scene():
    emoji = Emoji(n=10, val_n=10, languages=ALL)
    rows = draw_scenes(emoji.held_out, 400, 0, validation=False)
    captions = emoji.captions(rows)
    for i, language in enumerate(ALL):
        message = [caption[i] for caption in captions]
        different = {tuple(int(v[j]) for v in rows.columns().values()) for j in range(len(rows))}
        assert len(set(message)) == len(different), language  # different scenes have different captions


def test_a_table_has_all_languages_and_each_visit_draws_one(tmp_path):
    train, _ = Emoji(n=30, val_n=5, languages=ALL).tables(tmp_path)
    plain, _ = Emoji(n=30, val_n=5).tables(tmp_path)
    assert [texts[0] for texts in train.columns["text"]] == plain.columns["text"] and train.key != plain.key
    rows = np.arange(30)
    generated = [train.batch(rows, ["text"], np.full(30, at))["text"] for at in (0.1, 0.5, 0.9)]
    assert (
        generated[0] == plain.columns["text"]
        and all("背景" in t for t in generated[1])
        and all("خلفية" in t for t in generated[2])
    )


def test_held_out_captions_are_of_the_same_scenes_in_any_language():
    emoji = Emoji(languages=ALL)
    wanted, english = emoji.held_out_captions(20, 12)
    attributes, chinese = emoji.held_out_captions(20, 12, language="zh")
    assert all((wanted[k] == attributes[k]).all() for k in wanted)
    assert chinese == Scenes(**wanted).captions(emoji.objects, emoji.backgrounds, "zh") != english


def test_a_chinese_clause_is_not_one_word():
    """What is drawn of a pair never seen is told by its parts: characters, not whole clauses."""
    emoji = Emoji(languages=("zh",))
    captions = emoji.captions(draw_scenes(emoji.held_out, 2000, 0, validation=False))
    bpe = tokenizer.load(tokenizer.train(captions, 4096))
    _, unseen = emoji.held_out_captions(50, 50, language="zh")
    for caption in unseen:
        tokens = [bpe.decode([i]).strip() for i in bpe.encode(caption).ids]
        assert max(map(len, tokens)) == 1 and "".join(tokens) == caption


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["en", "fr"]}, "no captions in 'fr'; there are en, zh, ar"),
        ({"languages": ["en", "en"]}, "each named once"),
        ({"languages": ["zh"], "objects": ["cat", "dog", "anchor"]}, "anchor has no name in 'zh'"),
    ],
)
def test_what_cannot_be_expressed_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Emoji(**options)
