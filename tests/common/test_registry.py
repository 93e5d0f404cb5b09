import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from ldm.common import registry
from ldm.common.errors import UserError, did_you_mean


@pytest.fixture(autouse=True)
def own_classes(monkeypatch):
    """The classes of each test are forgotten after it."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def make():
    @registry.register
    class Inner:
        def __init__(self, size: int = 3):
            self.size = size

    @registry.register
    class Outer(nn.Module):
        def __init__(self, inner, layers, *, rate: float = 0.5, extra=None):
            super().__init__()
            self.inner, self.layers, self.rate, self.extra = inner, layers, rate, extra
            self.linear = nn.Linear(2, 2)

    return Inner, Outer


def test_a_spec_builds_its_like():
    Inner, Outer = make()
    thing = Outer(Inner(size=5), [1, 2], extra={"a": (Inner(), None), "b": "word"})
    spec = registry.spec_of(thing)
    assert spec == {
        "class": "Outer",
        "inner": {"class": "Inner", "size": 5},
        "layers": [1, 2],
        "extra": {"a": [{"class": "Inner"}, None], "b": "word"},
    }
    again = registry.build(spec)
    assert registry.spec_of(again) == spec
    assert isinstance(again.inner, Inner) and again.inner.size == 5 and isinstance(again.extra["a"][0], Inner)
    assert list(again.state_dict()) == ["linear.weight", "linear.bias"]  # the spec adds nothing to the weights


def test_derived_arguments_win():
    make()
    thing = registry.build({"class": "Outer", "layers": [1], "rate": 0.1}, inner=4, rate=0.2)
    assert (thing.inner, thing.rate) == (4, 0.2) and registry.spec_of(thing)["rate"] == 0.2


def test_a_subclass_keeps_its_own_arguments():
    Inner, _ = make()

    @registry.register
    class Wide(Inner):
        def __init__(self, factor: int):
            super().__init__(size=3 * factor)

    assert registry.spec_of(Wide(2)) == {"class": "Wide", "factor": 2}
    assert registry.build({"class": "Wide", "factor": 2}).size == 6

    class Unregistered(Inner):
        pass

    with pytest.raises(UserError, match="Unregistered isn't registered"):
        registry.spec_of(Unregistered())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class": "Outre", "inner": 1, "layers": 2}, "no class is registered as 'Outre'.*Did you mean 'Outer'"),
        ({"class": "os.system", "command": "ls"}, "no class is registered as 'os.system'"),
        ({"class": "Outer", "inner": 1, "layrs": 2}, "layrs: Outer has no such option.*Did you mean 'layers'"),
        ({"class": "Outer", "inner": {"class": "Inner", "sise": 2}}, "inner.sise: Inner has no such option"),
        ({"class": "Outer", "layers": [1]}, "Outer needs inner"),
        ({"layers": [1]}, "must name its class"),
    ],
)
def test_specs_that_are_refused(spec, message):
    make()
    with pytest.raises(UserError, match=message):
        registry.build(spec)


def test_an_option_is_refused_with_the_place_where_it_stands():
    make()
    with pytest.raises(UserError, match=r"^network\.inner\.sise: "):
        registry.check({"class": "Outer", "inner": {"class": "Inner", "sise": 2}}, "network")


@pytest.mark.parametrize("value", [torch.zeros(2), object(), functools.partial(print), {1}])
def test_what_is_not_plain_data_is_not_written(value):
    Inner, _ = make()
    with pytest.raises(UserError, match="model file"):
        registry.spec_of(Inner(size=value))


def test_did_you_mean():
    assert did_you_mean("stpes", ["steps", "scale"]) == " Did you mean 'steps'?"
    assert did_you_mean("xyz", ["steps", "scale"]) == " Known: scale, steps."
    assert did_you_mean("xyz", []) == ""
    assert did_you_mean(2, ["steps"]) == " Known: steps."  # whatever a user gives


def test_a_fresh_process_builds_by_name_what_yaml_can_name():
    code = "import ldm; print(type(ldm.build({'class': 'Digits'})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Digits\n", done.stderr
