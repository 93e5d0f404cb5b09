"""Raw text passes Hydra's grammar unchanged, and the jobs of a sweep get names that a file can have."""

import string

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ldm.common.errors import UserError
from ldm.config.overrides import job_name, prepare, quote

GROUPS = {"data", "network", "experiment"}
TEXTS = [
    "a cat above a rocket on a blue background",
    "it's a cat!",
    "一只猫,在火箭上",
    "قطة فوق صاروخ، ١",
    'she said "hi", x=[1,2] {a: b} (c) ~d',
    "a\\b 'c\\' \\",
    "two\nlines\tand a tab",
    "100% $HOME ${oc.env:HOME} \\${x}",
    "null",
    "1e3",
    "true",
    " blanks around ",
    "",
]


def read(word: str):
    """What Hydra and OmegaConf make of one prepared override."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)["value"]


def prepared(*words: str) -> list[str]:
    flags, options = prepare(words, GROUPS)
    return flags + options


@pytest.mark.parametrize("sweep", [(), ("-m",)])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["prompt", "negative", "data.text"])
def test_prose_is_raw_text_in_a_sweep_too(key, text, sweep):
    *_, word = prepared(*sweep, f"{key}={text}")
    assert word.startswith(f"++{key}=")
    assert read(word) == text


@pytest.mark.parametrize("path", ["/my photos (1)/a=b,c.zip", "it's/猫!.png", "epoch=1.ckpt", "C:\\x\\"])
@pytest.mark.parametrize("key", ["run", "data.root", "data.val_root", "out", "cache_dir", "trainer.default_root_dir"])
def test_paths_are_raw_text(key, path):
    (word,) = prepared(f"{key}={path}")
    assert read(word) == path


def test_a_path_may_be_null_and_may_interpolate():
    assert prepared("first_stage=null") == ["++first_stage=null"]
    assert prepared("init=null", "trigger=null") == ["++init=null", "++trigger=null"]
    assert prepared("prompt=null") == ["++prompt='null'"], "a prompt is what it says"
    assert prepared("data.root=${oc.env:X}/y") == ["++data.root='${oc.env:X}/y'"]


@given(st.text(alphabet=string.printable + "猫ق'\\\"${}", max_size=30))
def test_quote_is_undone_by_the_grammar(text):
    (override,) = OverridesParser.create().parse_overrides([f"++prompt={quote(text)}"])
    assert override.value() == text


def test_names_and_paths_are_swept_at_commas_prompts_are_not():
    words = prepared("-m", "first_stage=vae a,identity,null", "data.root='a,b','c'", "prompt=a, b")
    assert words == ["-m", "++first_stage='vae a','identity',null", "++data.root='a,b','c'", "++prompt='a, b'"]


def test_values_need_no_plus_and_groups_pass():
    assert prepared("trainer.precision=64", "network.depth=2") == ["++trainer.precision=64", "++network.depth=2"]
    untouched = ["data=folder", "+network=other", "experiment/vae=x", "~name", "hydra.job.chdir=true", "++x=1", "+y=1"]
    assert prepared(*untouched) == untouched


def test_a_condition_named_as_an_option_for_raw_text_is_no_text():
    assert read(*prepared("conditioner.text={class: Text}")) == {"class": "Text"}
    assert read(*prepared("conditioner.map={class: MapTokens, grid: 8}")) == {"class": "MapTokens", "grid": 8}
    assert read(*prepared("guidance.text=4")) == 4
    assert read(*prepared("conditioner.text.path=a, b")) == "a, b"
    assert read(*prepared("control_image.edges=it's, mine.png")) == "it's, mine.png"


def test_a_number_or_a_switch_of_the_same_name_as_a_path_stays_one() -> None:
    assert read(*prepared("diffusion.weighting.features=64")) == 64
    assert read(*prepared("conditioner.size.features=32")) == 32
    assert read(*prepared("lora=true")) is True
    assert read(*prepared("finetune.lora=false")) is False
    assert read(*prepared("run=true")) == "true"
    assert read(*prepared("distance.features=a, b.pt")) == "a, b.pt"


def test_a_new_word_needs_no_quotes():
    assert read(*prepared("word=<mine>")) == "<mine>"
    assert read(*prepared("trigger=Mona's cat")) == "Mona's cat"


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"])
def test_folders_of_hydra_are_refused_since_runs_have_their_own(key):
    with pytest.raises(UserError, match="name= and runs_dir="):
        prepared(f"{key}=/elsewhere")


def test_a_given_limit_replaces_the_other_one():
    assert prepared("trainer.max_steps=3") == ["++trainer.max_steps=3", "++trainer.max_time=null"]
    assert len(prepared("trainer.max_steps=3", "trainer.max_time=00:00:01:00")) == 2
    assert prepared("trainer.max_time=00:00:01:00")[1:] == ["++trainer.max_steps=-1"], "and the other way round"
    for none in ("trainer.max_time=null", "trainer.max_steps=null", "trainer.max_steps=-1"):
        assert len(prepared(none)) == 1


def test_flags_come_first_wherever_they_stand():
    assert prepared("data=folder", "-m", "n=1,2", "--cfg", "job") == ["-m", "--cfg", "job", "data=folder", "++n=1,2"]


@pytest.mark.parametrize(("word", "hint"), [("rocket", "KEY=VALUE"), ("--multrun", "--multirun"), ("=3", "KEY=VALUE")])
def test_a_stray_word_is_refused(word, hint):
    with pytest.raises(UserError, match=hint):
        prepare(["prompt=a", word], GROUPS)


def test_job_names():
    assert job_name([("network.channels", 64), ("diffusion", "eps")]) == "channels-64_diffusion-eps"
    assert job_name([("vae.channels", 1), ("network.channels", 2)]) == "vae.channels-1_network.channels-2"
    assert job_name([("network.channels", [32, 64]), ("ema", None), ("x", True)]) == "channels-32_64_ema-null_x-true"
    assert job_name([]) is None
    assert job_name([("name", "a")]) is None


def test_job_names_hold_nothing_that_a_file_name_cannot():
    names = [job_name([("first_stage", value)]) for value in ("a/b", "a b", "a=b", "a,b", "a_b", "猫", "x" * 300)]
    assert len(set(names)) == len(names)
    for name in names:
        assert not set("/=, ") & set(name)
        assert len(name.encode()) < 200
