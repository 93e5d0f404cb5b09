import json

import pytest
import torch

import ldm
from ldm.adapters import base_of, lora
from ldm.commands import export
from ldm.common.errors import UserError
from tests.adapters.models import equal, small
from tests.interop.pipelines import frozen_text, random_model

OURS = {"config.json", "model.safetensors", "manifest.json", "README.md", ".gitattributes"}


def test_a_pushed_model_is_loaded_from_the_address_that_is_returned(hub):
    model = small()
    address = model.push_to_hub("owner/name", licence="mit", message="A first one")
    repository = hub.repositories["owner/name"]
    files = repository.files("main")
    assert address == f"hf://owner/name@{repository.branches['main']}"
    assert set(files) == OURS and len(repository.commits) == 2  # the new repository's, and one for all files
    assert 'ldm.load("hf://owner/name")' in files["README.md"].decode() and b"license: mit" in files["README.md"]
    again = ldm.load(address)
    assert equal(again.state_dict(), model.state_dict()) and again.origin == address


def test_a_push_replaces_the_model_and_nothing_else(hub):
    model = small()
    model.push_to_hub("owner/name")
    repository = hub.repositories["owner/name"]
    repository.commit(repository.files("main") | {"README.md": b"mine", "samples/1.json": b"{}", "LICENSE.txt": b"x"})
    address = model.push_to_hub("hf://owner/name", to="diffusers")
    files = repository.files("main")
    assert files["README.md"] == b"mine" and {"samples/1.json", "LICENSE.txt", "model_index.json"} <= set(files)
    assert not {"manifest.json", "model.safetensors", "config.json"} & set(files)
    assert len(repository.commits) == 4
    again = ldm.load(address)
    assert equal(again.denoiser.network.state_dict(), model.denoiser.network.state_dict())
    model.push_to_hub("owner/name")
    assert set(repository.files("main")) == OURS | {"samples/1.json", "LICENSE.txt"}


def test_a_branch_is_pushed_to(hub):
    small().push_to_hub("owner/name")
    address = small(seed=1).push_to_hub("owner/name@v2")
    assert hub.repositories["owner/name"].branches["v2"] == address.split("@")[1]
    assert equal(ldm.load("hf://owner/name@v2").state_dict(), small(seed=1).state_dict())
    assert equal(ldm.load("hf://owner/name").state_dict(), small().state_dict())


def test_a_frozen_text_encoder_is_pushed_along_and_stays_where_it_is(hub, text_folder):
    model = random_model({"text": frozen_text(text_folder)})
    address = model.push_to_hub("owner/name")
    part = model.conditioner.parts["text"]
    assert part.path == str(text_folder / "text_encoder")
    part.release()
    expected = model("a cat", steps=2, output="pt")
    torch.testing.assert_close(ldm.load(address)("a cat", steps=2, output="pt"), expected)


def test_what_cannot_be_pushed_is_refused_before_any_work(hub, monkeypatch):
    from huggingface_hub import constants

    model = small()
    with pytest.raises(UserError, match="isn't an address on the hub"):
        model.push_to_hub("name")
    with pytest.raises(UserError, match="is pushed to a whole repository"):
        model.push_to_hub("owner/name/unet")
    with pytest.raises(UserError, match="to=onnx isn't a format to push"):
        model.push_to_hub("owner/name", to="onnx")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to push"):
        model.push_to_hub("owner/name")
    assert not hub.repositories


def test_the_command_pushes_a_lora_alone(hub, tmp_path, capsys):
    model = ldm.load(ldm.save(small(), tmp_path / "base"))
    base = base_of(model, tmp_path / "base", tmp_path / "run/model")
    lora.start(model, "style", rank=2, alpha=None, wanted="attention")
    adapter = lora.trained(model, "style", None, base)
    for parameter in adapter.parameters():
        parameter.data.normal_()
    ldm.save(adapter, tmp_path / "run/model")
    export.main([f"run={tmp_path / 'run'}", "out=hf://owner/style"])
    address = capsys.readouterr().out.strip()
    assert set(hub.repositories["owner/style"].files("main")) == {".gitattributes", "pytorch_lora_weights.safetensors"}
    one, other = small(), small()
    one.put_on(adapter, "style")
    other.load_lora(address)
    torch.testing.assert_close(other("a cat", output="pt"), one("a cat", output="pt"))


def test_a_hub_that_is_gone_is_said(hub):
    hub.die()
    with pytest.raises(UserError, match="hf://owner/name can't be pushed to: .*; push it again"):
        small().push_to_hub("owner/name")


def test_the_command_pushes_a_run(hub, tmp_path, capsys):
    ldm.save(small(), tmp_path / "run/model")
    export.main([f"run={tmp_path / 'run'}", "to=ldm", "out=hf://owner/name"])
    address = capsys.readouterr().out.strip()
    assert equal(ldm.load(address).state_dict(), small().state_dict())
    assert json.loads(hub.repositories["owner/name"].files("main")["config.json"])["model"]["class"]
