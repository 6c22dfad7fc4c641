"""Merging: the merged model has the logits of the adapter on its base model, and changed inputs are refused."""

import json
import resource
import subprocess

import pytest
from support.training import TINY, command, copy_project

from schemas.errors import CurateError, ExportError, TrainError
from schemas.manifest import read_manifest
from train.export.merge import merge
from train.export.source import find_source
from train.model.base_model import model_digest
from train.runs.retrain import retrain
from train.runs.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """Run r1 merged in float32."""
    folder = tmp_path_factory.mktemp("merged") / "r1"
    return merge(trained / "curate.duckdb", "r1", to=folder, dtype="float32")


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """The store of a copy of the trained project that a test may change."""
    store = copy_project(trained, tmp_path / "copy")
    monkeypatch.chdir(store.parent)
    return store


def replace_text(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def logits(folder, adapter=None):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return model.eval()(torch.arange(30, 94)[None]).logits


def test_the_logits_of_the_merged_model_differ_by_at_most_1e_5(trained, merged):
    assert merged.comparison.largest <= 1e-5
    assert merged.comparison.kl <= 1e-8
    assert (merged.comparison.rows, merged.comparison.top1_agreement) == (6, 1.0)
    base, adapter, model = logits(TINY), logits(TINY, trained / "adapters/r1"), logits(merged.folder)
    assert (adapter - model).abs().max() <= 1e-5
    assert (adapter - base).abs().max() >= 0.1


def test_the_merged_model_names_its_training_data(trained, merged):
    from safetensors import safe_open

    manifest = read_manifest(trained / "adapters/r1")
    with safe_open(merged.folder / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["curate"])
        assert file.metadata()["format"] == "pt"
    assert metadata["data"] == manifest.data.model_dump(mode="json")
    assert metadata["adapter_digest"] == manifest.adapter_digest
    assert read_manifest(merged.folder) == manifest
    card = (merged.folder / "README.md").read_text()
    assert manifest.data.digest in card
    assert "support@1, run r1, merged" in card


def test_a_merged_model_in_place_of_an_adapter_is_an_error_that_names_the_run(trained, merged, curate):
    store, folder = trained / "curate.duckdb", str(merged.folder)
    for function in (verify, retrain, find_source):
        with pytest.raises(TrainError, match=r"is the merged model of run r1; this command needs the run's adapter"):
            function(store, folder)
    ran = curate("chat", folder, "--prompt", "Hello", cwd=trained)
    assert ran.returncode == 1
    assert "Give the run, r1; for the merged model" in " ".join(ran.stderr.split())


def test_the_generation_config_has_the_stop_tokens(merged):
    settings = json.loads((merged.folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [10]
    assert settings["pad_token_id"] == 0


def test_the_merged_model_renders_chats_as_in_training(merged, trained):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_an_adapters_folder_loads_with_peft_and_has_what_vllm_and_tgi_need(trained):
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = trained / "adapters/r1"
    with torch.inference_mode():
        output = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            torch.arange(30, 94)[None]
        ).logits
    assert torch.equal(output, logits(TINY, folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["bias"], settings["modules_to_save"]) == ("LORA", "none", None)
    assert (settings["r"], settings["lora_alpha"], len(settings["target_modules"])) == (8, 16, 7)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    assert {name.rsplit(".", 2)[1] for name in names} == {"lora_A", "lora_B"}
    assert AutoTokenizer.from_pretrained(folder).chat_template == (folder / "chat_template.jinja").read_text()


def test_no_temporary_file_remains(merged):
    names = {path.name for path in merged.folder.iterdir()}
    assert names == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "manifest.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert not merged.folder.with_name("r1.partial").exists()


def test_a_merge_in_16_bits_is_as_large_as_the_base_model_and_differs_by_less_than_0_02(curate, project):
    ran = curate("merge", "r1", "--json", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    merged = json.loads(ran.stdout)
    assert merged["folder"] == str(project.parent / "merged/r1")
    assert merged["dtype"] == "float16"
    assert 1e-5 < merged["comparison"]["largest"] < 0.02
    assert merged["bytes"] == pytest.approx((TINY / "model.safetensors").stat().st_size, rel=0.01)


def test_an_identical_merge_is_skipped_and_a_different_one_is_not_overwritten(curate, project):
    folder = project.parent / "merged/r1"
    before = {path.name: path.stat().st_mtime_ns for path in merge(project, "r1", check=False).folder.iterdir()}
    again = curate("merge", "r1", "--no-check", cwd=project.parent)
    assert again.returncode == 0, again.stderr
    assert "Reading r1 and its base model …\n" in again.stderr
    printed = " ".join(again.stdout.split())
    assert "skipped: an identical merged model exists" in printed
    assert "skipped: --no-check" in printed
    compared = merge(project, "r1")
    assert (compared.already_exists, compared.comparison.rows) == (True, 6)
    assert compared.comparison.largest < 0.02
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ExportError, match="merged/r1 already exists"):
        merge(project, "r1", dtype="float32", check=False)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # an interrupted copy
    with pytest.raises(ExportError, match="merged/r1 already exists"):
        merge(project, "r1", check=False)


def test_a_merged_model_with_the_manifest_keys_of_an_earlier_release_is_identical(project):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder = merge(project, "r1", check=False).folder
    replace_text(folder / "manifest.json", '"loss_tokens"', '"learned"')
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    metadata["curate"] = metadata["curate"].replace('"loss_tokens"', '"learned"')
    save_file(load_file(weights), weights, metadata)
    assert merge(project, "r1", check=False).already_exists


@pytest.mark.parametrize("name", ["tokenizer.json", "manifest.json", "chat_template.jinja", "config.json"])
def test_a_merged_model_with_a_missing_or_changed_file_is_not_identical(project, name):
    path = merge(project, "r1", check=False).folder / name
    path.write_text("garbage")
    for _ in range(2):
        with pytest.raises(ExportError, match="merged/r1 already exists"):
            merge(project, "r1", check=False)
        path.unlink(missing_ok=True)


def test_changed_weights_of_the_same_length_are_found_by_the_comparison(project):
    weights = merge(project, "r1", check=False).folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-len(content) // 2 :] = bytes(len(content[-len(content) // 2 :]))
    weights.write_bytes(content)
    with pytest.raises(ExportError, match="differs from the adapter by"):
        merge(project, "r1")


def test_a_folder_with_other_files_is_not_overwritten(project):
    (project.parent / "out").mkdir()
    (project.parent / "out/README.md").write_text("My work")
    with pytest.raises(ExportError, match="out already exists"):
        merge(project, "r1", to=project.parent / "out")
    assert (project.parent / "out/README.md").read_text() == "My work"


# errors ---------------------------------------------------------------------------------------------------------------


def check_refused(project, message, error=ExportError):
    with pytest.raises(error, match=message):
        merge(project, "r1", to=project.parent / "out")
    assert not (project.parent / "out").exists()


def test_a_changed_base_model_is_refused(project):
    replace_text(project.parent / "tiny/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    check_refused(project, "was trained on a different model than the one in .*tiny: the digests differ")


def test_a_changed_tokenizer_is_refused(project):
    replace_text(project.parent / "tiny/tokenizer.json", '"lstrip": false', '"lstrip": true')
    check_refused(project, "The tokenizer in .*tiny has changed since run r1 was trained")


def test_a_changed_chat_template_is_refused(project):
    replace_text(project.parent / "adapters/r1/chat_template.jinja", "helpful", "helpless")
    check_refused(project, "is not the template of run r1", TrainError)


def test_changed_weights_are_refused(project):
    replace_text(project.parent / "adapters/r1/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 32')
    check_refused(project, "are not those of run r1")


def test_a_quantised_base_model_is_refused(project):
    config = project.parent / "tiny/config.json"
    settings = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(settings))
    accept_base(project)
    check_refused(project, r"is quantised \(bitsandbytes\)")


def test_the_comparison_needs_the_store_and_no_check_does_not(trained, tmp_path):
    adapter = str(trained / "adapters/r1")
    with pytest.raises(CurateError, match=r"The store .* does not exist"):
        merge(tmp_path / "none.duckdb", adapter, to=tmp_path / "out")
    assert merge(tmp_path / "none.duckdb", adapter, to=tmp_path / "out", check=False).comparison is None


# shards and interrupted merges ----------------------------------------------------------------------------------------


def accept_base(project):
    """Write the base model's present digest to the manifest of r1, as if it had been trained on it."""
    folder = project.parent / "adapters/r1"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["digest"] = model_digest(project.parent / "tiny")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def split_base(project):
    """Split the base model into two files: the embeddings and the layers, which are larger."""
    from safetensors.torch import load_file, save_file

    tiny = project.parent / "tiny"
    weights = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    files = {name: f"model-0000{2 - ('embed' in name)}-of-00002.safetensors" for name in weights}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, tiny / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    accept_base(project)
    return tiny


def test_a_merge_interrupted_by_a_full_disk_is_resumed_by_the_same_command(project):
    sizes = [path.stat().st_size for path in sorted(split_base(project).glob("*.safetensors"))]
    assert sizes[0] < sizes[1]
    room = sizes[1] - 1000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    ran = subprocess.run(
        command("merge", "r1", "--no-check"),
        cwd=project.parent,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert ran.returncode == 1
    assert "The disk is full" in ran.stderr
    partial = project.parent / "merged/r1.partial"
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert done
    assert not (project.parent / "merged/r1").exists()
    merged = merge(project, "r1")
    assert (merged.shards, len(done)) == (2, 1)
    assert {name: (merged.folder / name).stat().st_mtime_ns for name in done} == done
    assert not partial.exists()
    assert merged.comparison.largest < 0.02


def test_an_interrupted_merge_with_another_identity_is_not_resumed(project):
    partial = project.parent / "merged/r1.partial"
    partial.mkdir(parents=True)
    (partial / "identity").write_text("another")
    (partial / "model.safetensors").write_text("of another merge")
    assert merge(project, "r1").comparison.largest < 0.02
    (project.parent / "merged/r2.partial").mkdir()
    (project.parent / "merged/r2.partial/thesis.txt").write_text("all my work")
    with pytest.raises(ExportError, match="exists and is not an export"):
        merge(project, "r1", to=project.parent / "merged/r2")
    assert (project.parent / "merged/r2.partial/thesis.txt").exists()


# kinds of adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.o_proj": 3}},
        {"modules_to_save": ["input_layernorm"]},
    ],
)
def test_a_merged_shard_equals_pefts_merge(kind, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from train.export.sharded_merge import Shard, read_adapter

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"], **kind)
    model = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "magnitude" in name or "modules_to_save" in name:
                weight.add_(0.1 * torch.rand_like(weight))
    model.save_pretrained(tmp_path / "adapter")
    shard = Shard(TINY / "model.safetensors", read_adapter(tmp_path / "adapter"), torch.float32, {})
    shard.write(tmp_path / "model.safetensors")
    expected = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "model.safetensors")
    differences = {name: float((expected[name] - weight).abs().max()) for name, weight in merged.items()}
    assert max(differences.values()) <= 1e-6
    plain = load_file(TINY / "model.safetensors")
    changed = {name.split(".")[-2] for name, weight in merged.items() if not torch.equal(weight, plain[name].float())}
    assert changed == {"q_proj", "o_proj", "down_proj", *kind.get("modules_to_save", ())}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"modules_to_save": ["lm_head"]}, "changes lm_head.weight"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
    ],
)
def test_an_unsupported_kind_of_adapter_is_refused(kind, message, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from train.export.sharded_merge import read_adapter, tensor_names

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": ["q_proj"]} | kind))).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=message):
        read_adapter(tmp_path).check(tensor_names(TINY), TINY)
