"""Every class that an export writes beside the weights fits one file, in which each name has one meaning."""

import types

import pytest

from ldm.interop.exporting import flatten


@pytest.mark.parametrize("name", ["ldm_conditioner", "ldm_pipeline", "ldm_unet", "ldm_vae"])
def test_what_is_beside_the_weights_is_one_file(name):
    compile(flatten.flat(f"ldm.interop.exporting.beside.{name}"), name, "exec")


def test_a_name_that_is_imported_and_defined_is_refused(monkeypatch):
    source = "import torch.nn.functional as F\nF = 1\n"
    monkeypatch.setattr(flatten.inspect, "getsource", lambda module: source)
    monkeypatch.setattr(flatten.importlib, "import_module", lambda name: types.ModuleType(name))
    with pytest.raises(ValueError, match="F is imported, and defined in odd"):
        flatten.flat("odd")
