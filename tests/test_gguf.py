"""GGUF: llama.cpp's logits equal the merged model's, quantisations are measured, and a file names its data."""

import json
import re
import resource
import shutil
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from support.training import copy_project

from schemas.environment import install_command
from schemas.errors import ExportError
from schemas.manifest import read_manifest
from train.checks.serving_parity import check_serving
from train.export.activations import ROWS
from train.export.gguf import export_gguf, read_metadata
from train.export.llamacpp.convert import convert
from train.export.llamacpp.imatrix import read_imatrix, requantise
from train.export.llamacpp.locate import find_converter, find_quantiser
from train.export.llamacpp.logits import compute_gguf_logits, quantise
from train.export.logit_diff import compare_logits, compute_logits, open_model, take_sample
from train.export.merge import merge
from train.export.serve import resolve_gguf
from train.export.source import find_source, render_held_out, render_train
from train.tokens.render import render

pytestmark = pytest.mark.slow

KINDS = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]


@pytest.fixture(scope="module")
def project(exported, tmp_path_factory):
    """A copy, because measurements change which file later commands use."""
    return copy_project(exported.parent, tmp_path_factory.mktemp("quantised") / "copy")


@pytest.fixture(scope="module")
def files(project):
    """The files of run r1 with 16 bits and in all kinds, by kind."""
    return {file.kind: file for file in export_gguf(project, "r1", KINDS)}


def test_the_16_bit_file_has_the_logits_of_the_merged_model(files):
    comparison = files["f16"].comparison
    assert comparison.largest <= 1e-3 * comparison.scale  # llama.cpp also rounds activations to 16 bits
    assert comparison.kl <= 1e-5
    assert (comparison.rows, comparison.top1_agreement) == (6, 1.0)


def test_its_logits_differ_by_less_than_1e_4_if_only_the_weights_are_rounded(project, files, tmp_path):
    quantise(find_quantiser(), files["f16"].path, tmp_path / "r1.gguf", "f32", 1)
    sample = take_sample(render_held_out(project, find_source(project, "r1")), 2304, 4)
    with open_model(project.parent / "merged/r1") as model:
        reference = compute_logits(model, sample)
    comparison = compare_logits(sample, reference, compute_gguf_logits(tmp_path / "r1.gguf", sample, 1))
    assert comparison.largest <= 1e-4


def test_fewer_bits_give_a_smaller_file_with_a_larger_divergence(files):
    sizes = [files[kind].bytes for kind in [*KINDS, "f16"]]
    assert sizes == sorted(sizes)
    divergences = [files[kind].comparison.kl for kind in ("q8_0", "q6_k", "q4_k_m", "q2_k")]
    assert divergences == sorted(divergences)
    assert 0 < divergences[0] < 0.005 < divergences[-1]
    assert files["q8_0"].comparison.reference_perplexity == files["f16"].comparison.perplexity


def test_the_recommended_file_is_the_smallest_within_the_limits(files):
    (recommended,) = (file for file in files.values() if file.recommended)
    good = [
        file.bytes
        for file in files.values()
        if file.kind != "f16"
        and file.comparison.kl <= 0.02
        and file.comparison.perplexity <= 1.01 * file.comparison.reference_perplexity
    ]
    assert recommended.bytes == min(good)


def test_the_recommended_file_is_served_and_reported_with_the_others(project, files, tmp_path):
    store = copy_project(project.parent, tmp_path / "copy")
    measured = store.parent / "gguf/r1/measured.json"
    messages = []
    (recommended,) = (file for file in files.values() if file.recommended)
    assert resolve_gguf(store, "r1", report=messages.append).name == recommended.path.name
    kept = json.loads(measured.read_text())
    assert all({"difference", "take"} < set(file) and "same_choice" in file["difference"] for file in kept["files"])
    for file in kept["files"]:
        file["difference"]["kl"] = 0.01 if file["kind"] in ("f16", "q6_k") else 0.03  # q6_k is not a default kind
    measured.write_text(json.dumps(kept))
    assert resolve_gguf(store, "r1", report=messages.append).name == "r1-q6_k.gguf"
    assert messages[1].startswith("Using r1-q6_k.gguf: recommended by curate gguf. --quant selects another: f16, q2")
    assert resolve_gguf(store, "r1", "q4_k_m", messages.append).name == "r1-q4_k_m.gguf"
    assert "selected by --quant" in messages[2]
    measured.unlink()
    assert resolve_gguf(store, "r1", report=messages.append).name == "r1-q4_k_m.gguf"  # the first default kind
    assert "r1-q4_k_m.gguf: nothing was measured" in messages[3]


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_the_metadata_names_the_training_data(project, files, kind):
    manifest = read_manifest(project.parent / "adapters/r1")
    metadata = read_metadata(files[kind].path)
    assert metadata["curate.version"] == "support@1"
    assert metadata["curate.digest"] == manifest.data.digest
    assert metadata["curate.template_digest"] == manifest.rendering.template_digest
    assert metadata["curate.run"] == "r1"
    assert json.loads(metadata["curate.manifest"])["adapter_digest"] == manifest.adapter_digest
    assert metadata["tokenizer.chat_template"] == (project.parent / "adapters/r1/chat_template.jinja").read_text()


def test_existing_files_are_kept_and_no_incomplete_file_remains(project, files):
    before = {path.name: path.stat().st_mtime_ns for path in (project.parent / "gguf/r1").iterdir()}
    assert set(before) == {f"r1-{kind}.gguf" for kind in [*KINDS, "f16"]} | {"measured.json"}
    (again, _) = export_gguf(project, "r1", ["q4_k_m"], check=False)
    assert again.comparison is None
    assert {path.name: path.stat().st_mtime_ns for path in (project.parent / "gguf/r1").iterdir()} == before


def test_long_steps_report_their_progress(project, files, tmp_path, monkeypatch):
    monkeypatch.setattr("train.export.gguf.PROGRESS_SECONDS", 0.0)
    shutil.copy(files["f16"].path, tmp_path)
    messages = []
    export_gguf(project, "r1", [], imatrix=True, to=tmp_path, rows=3, report=messages.append)
    rows = render_train(project, find_source(project, "r1"), ROWS).height
    assert any(re.fullmatch(rf"Processed 2 of {rows}, \d:\d\d:\d\d left", line) for line in messages)
    assert any(re.fullmatch(r"Compared 2 of 3, \d:\d\d:\d\d left", line) for line in messages)


# importance matrix ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imatrix_files(project, files, tmp_path_factory):
    """The files of run r1 quantised with an importance matrix, by kind, in a separate folder."""
    folder = tmp_path_factory.mktemp("imatrix")
    shutil.copy(files["f16"].path, folder)
    return {file.kind: file for file in export_gguf(project, "r1", ["q2_k", "q3_k_m"], imatrix=True, to=folder)}


def test_the_matrix_is_computed_from_the_training_split_and_named_in_every_file_that_uses_it(project, imatrix_files):
    rows = render_train(project, find_source(project, "r1"), ROWS)["input_ids"]
    facts = {"conversations": len(rows), "tokens": int(rows.list.len().sum()), "weights": 14}
    folder = imatrix_files["q2_k"].path.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "measured.json",
        "r1-f16.gguf",
        "r1-imatrix-q2_k.gguf",
        "r1-imatrix-q3_k_m.gguf",
        "r1.imatrix",
    ]
    for path in (imatrix_files["q2_k"].path, imatrix_files["q3_k_m"].path, folder / "r1.imatrix"):
        assert json.loads(read_metadata(path)["curate.imatrix"]) == facts
        assert read_metadata(path)["curate.version"] == "support@1"


def test_no_more_conversations_are_rendered_than_are_needed(project, monkeypatch):
    source = find_source(project, "r1")
    everything = render_train(project, source, ROWS)
    rendered = []

    def count(conversations, *arguments):
        made = render(conversations, *arguments)
        rendered.append(made.height)
        return made.with_columns(problem=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("no")))

    monkeypatch.setattr("train.export.source.render", count)
    rows = render_train(project, source, 3)
    assert rows["id"].to_list() == [everything["id"][number] for number in (0, 2, 3)]
    assert rendered == [3, 3]


def test_the_matrix_has_the_mean_squares_of_the_inputs_of_each_layer(project, imatrix_files):
    import torch

    rows = render_train(project, find_source(project, "r1"), ROWS)["input_ids"].to_list()
    with open_model(project.parent / "merged/r1") as model, torch.no_grad():
        embeddings = model.model.embed_tokens(torch.tensor([token for row in rows for token in row]))
        expected = model.model.layers[0].input_layernorm(embeddings).square().mean(dim=0).numpy()
    squares = read_imatrix(imatrix_files["q2_k"].path.parent / "r1.imatrix").squares
    for part in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(squares[f"blk.0.{part}.weight"], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["q2_k", "q3_k_m"])
def test_the_matrix_reduces_the_weighted_rounding_error_of_every_layer(files, imatrix_files, kind):
    squares = read_imatrix(imatrix_files[kind].path.parent / "r1.imatrix").squares
    exact, plain, weighted = (weights_of(file.path) for file in (files["f16"], files[kind], imatrix_files[kind]))
    assert exact.keys() == plain.keys() == weighted.keys()
    for name, square in squares.items():
        errors = [float(((made[name] - exact[name]) ** 2 * square).sum()) for made in (weighted, plain)]
        assert errors[0] < errors[1], name
    others = [name for name in exact if name not in squares]
    assert all(np.array_equal(plain[name], weighted[name]) for name in others)
    assert imatrix_files[kind].comparison.kl <= 1.2 * files[kind].comparison.kl  # 144 tokens: the noise in nats


def weights_of(path):
    from gguf import GGUFReader, dequantize

    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def test_a_matrix_of_another_width_is_refused(files, imatrix_files, tmp_path):
    matrix = read_imatrix(imatrix_files["q2_k"].path.parent / "r1.imatrix")
    short = replace(matrix, squares={name: square[:-32] for name, square in matrix.squares.items()})
    with pytest.raises(ExportError, match=r"The matrix has \d+ numbers for blk\.0\.\w+\.weight, whose rows have \d+"):
        requantise(short, files["f16"].path, files["q2_k"].path, tmp_path / "r1.gguf", 2)


def test_a_kind_without_matrix_support_equals_the_quantisers_output_bit_for_bit(files, imatrix_files, tmp_path):
    matrix = read_imatrix(imatrix_files["q2_k"].path.parent / "r1.imatrix")
    uniform = replace(matrix, squares={name: np.ones_like(square) for name, square in matrix.squares.items()})
    requantise(uniform, files["f16"].path, files["q8_0"].path, tmp_path / "r1.gguf", 2)
    made, expected = weights_of(tmp_path / "r1.gguf"), weights_of(files["q8_0"].path)  # q8_0 ignores the matrix
    assert all(np.array_equal(made[name], expected[name]) for name in expected)


def test_llama_quantize_receives_the_matrix(files, imatrix_files, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text(f'#!/bin/sh\npwd > {tmp_path}/arguments\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\n')
    program.chmod(0o755)
    matrix = imatrix_files["q2_k"].path.parent / "r1.imatrix"
    quantise(program, files["f16"].path, tmp_path / "out.gguf", "q4_k_m", 2, imatrix=matrix)
    folder, *arguments = (tmp_path / "arguments").read_text().splitlines()
    description = f"curate.imatrix=str:{read_imatrix(matrix).as_text()}"
    assert arguments[:4] == ["--imatrix", "r1.imatrix", "--override-kv", description]
    assert arguments[4:] == [str(files["f16"].path), str(tmp_path / "out.gguf"), "q4_k_m", "2"]
    assert folder == str(matrix.parent)


def test_the_table_of_the_command_breaks_no_name_in_80_columns(curate, project, imatrix_files):
    folder = imatrix_files["q3_k_m"].path.parent
    arguments = ["--quant", "q3_k_m", "--imatrix", "--rows", "1", "--to", str(folder)]
    ran = curate("gguf", "r1", *arguments, cwd=project.parent, COLUMNS="80")
    assert ran.returncode == 0, ran.stderr
    assert "\nr1-imatrix-q3_k_m.gguf " in ran.stdout
    assert "\nr1-imatrix-q2_k.gguf " in ran.stdout  # measured before, by the fixture
    measured = json.loads((folder / "measured.json").read_text())["files"][1]["difference"]
    increase = measured["perplexity"] / measured["reference_perplexity"] - 1
    (line,) = (line for line in ran.stdout.splitlines() if "q3_k_m" in line)
    assert f" {increase:+.2%} " in line
    assert ("PPL" in line) == (increase > 0.01)
    assert ("KL" in line) == (measured["kl"] > 0.02)
    assert "f16 is compared with the merged model" in ran.stderr


# errors ---------------------------------------------------------------------------------------------------------------


def test_an_unknown_quantisation_is_an_error_that_lists_the_known_ones(project):
    with pytest.raises(ExportError, match="q9 is not a known quantisation") as caught:
        export_gguf(project, "r1", ["q9"])
    assert "q4_k_m" in caught.value.hint


def test_a_file_of_another_adapter_is_not_overwritten(project, files, tmp_path):
    config = tmp_path / "copy" / "adapters/r1/adapter_config.json"
    store = copy_project(project.parent, tmp_path / "copy")
    shutil.rmtree(store.parent / "merged")
    from train.model.adapter import adapter_digest

    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    manifest = json.loads((config.parent / "manifest.json").read_text())
    (config.parent / "manifest.json").write_text(
        json.dumps(manifest | {"adapter_digest": adapter_digest(config.parent)})
    )
    with pytest.raises(ExportError, match=r"r1-f16.gguf already exists, from another adapter"):
        export_gguf(store, "r1", [], check=False)


def test_a_missing_converter_or_quantiser_is_reported_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setattr("train.export.llamacpp.locate.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for find, name in ((find_converter, "converter, convert_hf_to_gguf.py"), (find_quantiser, "quantiser")):
        with pytest.raises(ExportError, match=f"{name}.* not installed") as caught:
            find()
        assert install_command("gguf") in caught.value.hint
    with pytest.raises(ExportError, match=r"There is no convert_hf_to_gguf.py in"):
        find_converter(tmp_path)


def test_a_given_llama_cpp_is_used_before_the_installed_one(tmp_path, monkeypatch):
    (tmp_path / "build/bin").mkdir(parents=True)
    (tmp_path / "build/bin/llama-quantize").touch(mode=0o755)
    assert find_quantiser(tmp_path) == tmp_path / "build/bin/llama-quantize"
    monkeypatch.setenv("PATH", str(tmp_path / "build/bin"))
    assert find_quantiser() == tmp_path / "build/bin/llama-quantize"
    assert find_converter().is_file()


def test_a_vocabulary_that_llama_cpp_does_not_know_is_an_error(project, files, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    text = (model / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    words = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}
    level = {**tokenizer["pre_tokenizer"], "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, level]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ExportError, match="does not know the pre-tokenizer of the tokenizer in"):
        convert(find_converter(), model, tmp_path / "out.gguf", "f16", metadata={}, stop=None)
    assert not (tmp_path / "out.gguf").exists()


def test_an_error_of_the_converter_shows_its_last_line(project, files, tmp_path):
    broken = tmp_path / "convert_hf_to_gguf.py"
    broken.write_text("raise SystemExit('this model is too new')")
    with pytest.raises(ExportError, match=r"cannot convert .*: this model is too new"):
        convert(broken, project.parent / "merged/r1", tmp_path / "out.gguf", "f16", metadata={}, stop=None)
    assert sys.modules.get("convert_hf_to_gguf") is None


@pytest.mark.parametrize(("kinds", "room"), [([], 2_000_000), (["q8_0"], 1_000_000)])
def test_a_full_disk_leaves_no_file(project, files, tmp_path, kinds, room):
    folder = tmp_path / "gguf"
    folder.mkdir()
    if kinds:
        shutil.copy(files["f16"].path, folder)
    before = sorted(folder.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(ExportError) as caught:
            export_gguf(project, "r1", kinds, to=folder, check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search("disk (is|may be) full", f"{caught.value.what} {caught.value.hint}")
    assert sorted(folder.iterdir()) == before


def test_a_full_finetune_is_exported_without_merging(tuned, tmp_path):
    store = copy_project(tuned, tmp_path / "copy")
    with pytest.raises(ExportError, match="r1 is a complete model, there is nothing to merge"):
        merge(store, "r1")
    (file,) = export_gguf(store, "r1", [])
    assert file.comparison.largest <= 1e-3 * file.comparison.scale
    report = check_serving(store, "r1")
    assert report.passed
    assert [engine.engine for engine in report.engines] == [
        "training, generation prompt",
        "transformers, model",
        "llama.cpp, r1-f16.gguf",
    ]
