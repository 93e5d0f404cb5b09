import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm
from ldm import artifact
from ldm.adapters import WordEmbedding, base_of, lora
from ldm.commands import evaluate
from ldm.common.errors import UserError
from ldm.interop import hub as hub_room
from ldm.training.runs.folder import find_run
from tests.adapters.models import equal, small
from tests.interop.hub.server import Hub, Repository
from tests.interop.pipelines import frozen_text, random_model

ADDRESS = "hf://owner/name"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The model folder of a small model."""
    return artifact.save(small(), tmp_path / "folder")


def go_offline(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def downloaded(server: Hub) -> set[str]:
    return {path.split("/resolve/")[1].split("/", 1)[1] for path in server.asked if "/resolve/" in path}


def test_a_model_folder_is_loaded_and_its_commit_recorded(hub, folder):
    (folder / "notes.py").write_text("raise SystemExit")
    (folder / "other.safetensors").write_bytes(b"0" * 5000)
    commit = hub.put("owner/name", folder)
    model = ldm.load(ADDRESS)
    assert equal(model.state_dict(), small().state_dict())
    assert model.origin == f"{ADDRESS}@{commit}" and f"@{commit}" in repr(model)
    assert downloaded(hub) == {"config.json", "model.safetensors", "manifest.json"}
    assert find_run("ldm", ADDRESS).name == commit  # sample, evaluate, base=, lora=, ... find their models by it


def test_a_branch_or_a_commit_is_taken(hub, folder, tmp_path):
    old = hub.put("owner/name", folder)
    new = hub.put("owner/name", artifact.save(small(seed=1), tmp_path / "new"), branch="v2")
    for revision, seed, commit in (("main", 0, old), ("v2", 1, new), (old, 0, old), (new, 1, new)):
        model = ldm.load(f"{ADDRESS}@{revision}")
        assert equal(model.state_dict(), small(seed=seed).state_dict())
        assert model.origin == f"{ADDRESS}@{commit}"


def test_what_the_hub_does_not_have_is_said(hub, folder):
    hub.put("owner/name", folder)
    with pytest.raises(UserError, match="no owner/other that this login may use: check the name"):
        ldm.load("hf://owner/other")
    with pytest.raises(UserError, match="has no such revision: give one of its branches"):
        ldm.load(f"{ADDRESS}@v9")
    with pytest.raises(UserError, match="holds no model folder and no folder of diffusers"):
        ldm.load(f"{ADDRESS}/samples")


def test_a_changed_file_is_refused_and_left_nowhere(hub, folder):
    commit = hub.put("owner/name", folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    hub.served["model.safetensors"] = bytes(weights)
    with pytest.raises(UserError, match="model.safetensors of hf://owner/name isn't the file that it should be"):
        ldm.load(ADDRESS)
    snapshot = Path(hub_room.download.client().constants.HF_HUB_CACHE, "models--owner--name/snapshots", commit)
    assert not (snapshot / "model.safetensors").exists()
    with pytest.raises(UserError):
        ldm.load(snapshot)
    hub.served.clear()
    assert equal(ldm.load(ADDRESS).state_dict(), small().state_dict())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_file_that_changed_in_the_cache_is_refused(name, offline, hub, folder, monkeypatch):
    hub.put("owner/name", folder)
    file = find_run("ldm", ADDRESS) / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.resolve().write_bytes(content)
    if offline:
        go_offline(monkeypatch)
    with pytest.raises(UserError, match=f"{name} of hf://owner/name was changed or is damaged"):
        ldm.load(ADDRESS)


def test_offline_takes_the_cache_alone(hub, folder, monkeypatch):
    commit = hub.put("owner/name", folder)
    ldm.load(ADDRESS)
    go_offline(monkeypatch)
    hub.asked.clear()
    assert ldm.load(ADDRESS).origin == f"{ADDRESS}@{commit}"
    assert equal(ldm.load(f"{ADDRESS}@{commit}").state_dict(), small().state_dict())
    assert not hub.asked
    with pytest.raises(UserError, match="isn't in the hub's cache .*HF_HUB_OFFLINE forbids to download it"):
        ldm.load("hf://owner/other")


def test_a_hub_that_does_not_answer_leaves_the_cache(hub, folder, caplog):
    hub.put("owner/name", folder)
    ldm.load(ADDRESS)
    hub.die()
    assert equal(ldm.load(ADDRESS).state_dict(), small().state_dict())
    assert "can't be reached: taking hf://owner/name" in caplog.text
    with pytest.raises(UserError, match="can't be reached .*, and the cache doesn't have it"):
        ldm.load("hf://owner/other")


def test_a_hub_that_dies_in_a_download_leaves_nothing_that_loads(hub, folder, monkeypatch, tmp_path):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between the client's five tries
    commit = hub.put("owner/name", folder)
    hub.dies_after = 1000
    with pytest.raises(UserError, match="the download of model.safetensors from hf://owner/name stopped"):
        ldm.load(ADDRESS)
    with pytest.raises(UserError, match="can't be reached"):
        ldm.load(ADDRESS)
    go_offline(monkeypatch)
    for address in (ADDRESS, f"{ADDRESS}@{commit}"):
        with pytest.raises(UserError, match="in the hub's cache"):
            ldm.load(address)
    with pytest.raises(UserError, match="there is no model at|holds no whole model"):
        ldm.load(tmp_path / "cache/models--owner--name/snapshots" / commit)


@pytest.mark.slow
@pytest.mark.parametrize("of_diffusers", [False, True])
def test_the_server_process_killed_in_a_download_leaves_nothing_that_loads(of_diffusers, tmp_path, text_folder):
    """Real processes: the server is killed, and the client is the command, which knows the server by HF_ENDPOINT."""
    folder = tmp_path / "folder"
    if of_diffusers:
        random_model({"text": frozen_text(text_folder)}).export(folder)
    else:
        artifact.save(small(), folder)
    serve = [sys.executable, str(Path(__file__).with_name("server.py")), str(folder)]
    options = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def sample(server):
        where = {"HF_ENDPOINT": server} if server else {"HF_HUB_OFFLINE": "1"}
        words = ["run=hf://owner/name", "n=1", "steps=2", f"out={tmp_path / 'out.png'}", "prompt='a cat'"]
        command = [sys.executable, "-m", "ldm", "sample", *words]
        return subprocess.run(command, env=os.environ | options | where, capture_output=True, text=True, timeout=300)

    with subprocess.Popen([*serve, "2000"], stdout=subprocess.PIPE, text=True) as server:
        failed = sample(server.stdout.readline().strip())
        server.terminate()  # unless it was killed
    assert server.returncode == -signal.SIGKILL, failed.stderr
    assert failed.returncode == 2 and "from hf://owner/name stopped" in failed.stderr, failed.stderr
    offline = sample(None)
    assert offline.returncode == 2 and "in the hub's cache" in offline.stderr, offline.stderr
    assert not (tmp_path / "out.png").exists()
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:  # it goes on where it stopped
        done = sample(server.stdout.readline().strip())
        server.kill()
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(ADDRESS + "@[0-9a-f]{40}", json.loads(Image.open(tmp_path / "out.png").text["ldm"])["run"])
    assert sample(None).returncode == 0


def test_a_pipeline_of_diffusers_is_loaded_without_what_is_not_read(hub, text_folder, tmp_path):
    random_model({"text": frozen_text(text_folder)}).export(tmp_path / "out")
    expected = ldm.load(tmp_path / "out")("a cat", steps=2, output="pt")
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/run.py",
                 "text_encoder/flax_model.msgpack", "whole.safetensors", "unet_ema/config.json",
                 "safety_checker/model.safetensors"):  # fmt: skip
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"no weights")
    hub.put("owner/name", tmp_path / "out")
    torch.testing.assert_close(ldm.load(ADDRESS)("a cat", steps=2, output="pt"), expected)
    fetched = downloaded(hub)
    assert {name.split("/")[0] for name in fetched} == {
        "model_index.json", "unet", "vae", "scheduler", "text_encoder", "tokenizer"
    }  # fmt: skip
    assert not [n for n in fetched if n.endswith((".py", ".bin", ".msgpack")) or "fp16" in n]
    vae = ldm.load(f"{ADDRESS}/vae")
    assert type(vae).__name__ == "AutoencoderKL" and vae.origin.endswith("/vae")


def test_a_pipeline_that_is_only_partly_in_the_cache_is_refused_offline(hub, text_folder, tmp_path, monkeypatch):
    random_model({"text": frozen_text(text_folder)}).export(tmp_path / "out")
    hub.put("owner/name", tmp_path / "out")
    path = find_run("ldm", ADDRESS)
    shutil.rmtree(path / "vae")
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="hf://owner/name isn't whole: model_index.json names vae"):
        ldm.load(ADDRESS)


def test_no_code_of_a_repository_is_run(hub, text_folder, tmp_path):
    """Neither code in a pickled file, nor in a module that a config names."""
    random_model({"text": frozen_text(text_folder)}).export(tmp_path / "out")
    marker, unet = tmp_path / "ran", tmp_path / "out/unet"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    config = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "out/text_encoder/config.json").write_text(json.dumps(config))
    (tmp_path / "out/text_encoder/code.py").write_text(f"import os\nos.mkdir({str(marker)!r})")
    hub.put("owner/name", tmp_path / "out")
    model = ldm.load(ADDRESS)
    with pytest.raises(UserError, match="no text encoder at"):
        model("a cat")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Code()}, unet / "diffusion_pytorch_model.bin")
    hub.put("owner/name", tmp_path / "out")
    with pytest.raises(UserError, match="can't be read without running its code"):
        ldm.load(ADDRESS)
    assert not marker.exists()


def test_a_lora_is_put_on_from_the_hub(hub, tmp_path):
    model = small()
    lora.start(model, "style", rank=2, alpha=None, wanted="attention")
    weights = lora.trained(model, "style", None, {})
    for parameter in weights.parameters():
        parameter.data.normal_()
    one = small()
    one.put_on(weights, "style")
    one.export_lora(tmp_path / "lora/style.safetensors")
    hub.put("owner/style", tmp_path / "lora")
    hub.put("owner/folder", artifact.save(weights, tmp_path / "adapter"))
    expected = one(["a cat"], output="pt")
    for address, name in (("hf://owner/style/style.safetensors", "style"), ("hf://owner/folder", "folder")):
        other = small()
        other.load_lora(address)
        assert list(other.adapters) == [name]
        torch.testing.assert_close(other(["a cat"], output="pt"), expected)
    with pytest.raises(UserError, match="name what you mean in it, such as style.safetensors"):
        small().load_lora("hf://owner/style")


def test_modules_that_a_repositorys_config_names_are_not_imported(hub, folder):
    hub.put("owner/name", folder)
    path = find_run("ldm", ADDRESS)
    (path / "config.yaml").write_text("modules: [antigravity]\ndata: {class: Digits}")  # as another download left it
    with pytest.raises(UserError, match="has no config.yaml"):
        evaluate.data_of(path, {})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["learned_embeds.safetensors", "learned_embeds.bin"])
def test_a_word_is_loaded_from_the_hub(name, hub, text_folder, tmp_path):
    model = random_model({"text": frozen_text(text_folder)})
    model.put_on(WordEmbedding.of_tensor("<mine>", torch.ones(2, 16)), "<mine>")
    model.export_word(tmp_path / "word" / name, "<mine>")
    hub.put("owner/word", tmp_path / "word")
    other = random_model({"text": frozen_text(text_folder)})
    assert other.load_word("hf://owner/word") == "<mine>"
    assert torch.equal(other.conditioner.parts["text"].word_rows[0], torch.ones(2, 16))


def test_an_adapter_finds_its_base_on_the_hub(hub, folder, tmp_path):
    commit = hub.put("owner/name", folder)
    path = find_run("ldm", ADDRESS)
    model = ldm.load(path)
    base = base_of(model, path, tmp_path / "run/model")
    assert base["path"] == f"{ADDRESS}@{commit}"
    lora.start(model, "style", rank=2, alpha=None, wanted="attention")
    artifact.save(lora.trained(model, "style", None, base), tmp_path / "run/model")
    loaded = ldm.load(tmp_path / "run")
    assert list(loaded.adapters) == ["run"] and loaded.origin == f"{ADDRESS}@{commit}"


def test_a_missing_package_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"need huggingface_hub: pip install 'ldm\[hub\]'"):
        ldm.load(ADDRESS)
    with pytest.raises(UserError, match=r"need huggingface_hub: pip install 'ldm\[hub\]'"):
        small().push_to_hub("owner/name")


def test_files_outside_of_a_repository_are_not_touched(hub, folder):
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    hub.repositories["owner/name"] = Repository()
    hub.repositories["owner/name"].commit(files | {"../../../stray.json": b"{}"})
    assert equal(ldm.load(ADDRESS).state_dict(), small().state_dict())
