"""GGUF: llama.cpp answers as the merged model does, each quantisation is measured, and the file names its data."""

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
from train.export.gguf import quantise_run, read_metadata
from train.export.llamacpp.convert import convert
from train.export.llamacpp.imatrix import read_imatrix, round_by
from train.export.llamacpp.locate import Quantiser, find_converter, find_quantiser
from train.export.llamacpp.logits import evaluator, quantise
from train.export.logit_diff import difference, loaded, model_logits, take_sample
from train.export.merge import merge
from train.export.serve import gguf_to_serve
from train.export.source import find_source, held_out_rows, train_rows
from train.tokens.render import render

pytestmark = pytest.mark.slow

KINDS = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]


@pytest.fixture(scope="module")
def project(exported, tmp_path_factory):
    """A copy, since what is measured decides what others take."""
    return copy_project(exported.parent, tmp_path_factory.mktemp("quantised") / "copy")


@pytest.fixture(scope="module")
def files(project):
    """Run r1 in 16 bits and in all kinds, by kind."""
    return {file.kind: file for file in quantise_run(project, "r1", KINDS)}


def test_the_16_bit_file_says_what_the_merged_model_says(files):
    found = files["f16"].difference
    assert found.largest <= 1e-3 * found.scale  # llama.cpp rounds activations to 16 bits too
    assert found.kl <= 1e-5
    assert (found.rows, found.same_choice) == (6, 1.0)


def test_its_weights_are_those_of_the_merged_model_and_say_the_same_where_nothing_else_is_rounded(
    project, files, tmp_path
):
    quantise(find_quantiser(), files["f16"].path, tmp_path / "r1.gguf", "f32", 1)
    sample = take_sample(held_out_rows(project, find_source(project, "r1")), 2304, 4)
    with loaded(project.parent / "merged/r1") as model:
        reference = model_logits(model, sample)
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


def test_the_file_to_take_is_the_one_that_is_served_and_said_with_the_others(project, files, tmp_path):
    store = copy_project(project.parent, tmp_path / "copy")
    measured = store.parent / "gguf/r1/measured.json"
    said = []
    (taken,) = (file for file in files.values() if file.take)
    assert gguf_to_serve(store, "r1", report=said.append).name == taken.path.name
    kept = json.loads(measured.read_text())
    for file in kept["files"]:
        file["difference"]["kl"] = 0.01 if file["kind"] in ("f16", "q6_k") else 0.03  # q6_k stands in no line
    measured.write_text(json.dumps(kept))
    assert gguf_to_serve(store, "r1", report=said.append).name == "r1-q6_k.gguf"
    assert said[1].startswith(
        "Takes r1-q6_k.gguf: the one to take by what was measured. --quant takes another: f16, q2"
    )
    assert gguf_to_serve(store, "r1", "q4_k_m", said.append).name == "r1-q4_k_m.gguf"
    assert "as asked" in said[2]
    measured.unlink()
    assert gguf_to_serve(store, "r1", report=said.append).name == "r1-q4_k_m.gguf"  # the first in line
    assert "r1-q4_k_m.gguf: nothing was measured" in said[3]


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
    assert set(before) == {f"r1-{kind}.gguf" for kind in [*KINDS, "f16"]} | {"measured.json"}
    (again, _) = quantise_run(project, "r1", ["q4_k_m"], check=False)
    assert again.difference is None
    assert {path.name: path.stat().st_mtime_ns for path in (project.parent / "gguf/r1").iterdir()} == before


def test_what_takes_long_says_how_far_it_is(project, files, tmp_path, monkeypatch):
    monkeypatch.setattr("train.export.gguf.PULSE", 0.0)
    shutil.copy(files["f16"].path, tmp_path)
    said = []
    quantise_run(project, "r1", [], imatrix=True, to=tmp_path, rows=3, report=said.append)
    rows = train_rows(project, find_source(project, "r1"), ROWS).height
    assert any(re.fullmatch(rf"weighed 2 of {rows}, \d:\d\d:\d\d left", line) for line in said)
    assert any(re.fullmatch(r"compared 2 of 3, \d:\d\d:\d\d left", line) for line in said)


# by an importance matrix ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weighed(project, files, tmp_path_factory):
    """Run r1 rounded by an importance matrix, by kind, in a folder of its own."""
    folder = tmp_path_factory.mktemp("weighed")
    shutil.copy(files["f16"].path, folder)
    return {file.kind: file for file in quantise_run(project, "r1", ["q2_k", "q3_k_m"], imatrix=True, to=folder)}


def test_a_matrix_is_of_the_training_split_and_every_file_that_was_rounded_by_it_says_so(project, weighed):
    rows = train_rows(project, find_source(project, "r1"), ROWS)["input_ids"]
    said = {"conversations": len(rows), "tokens": int(rows.list.len().sum()), "weights": 14}
    folder = weighed["q2_k"].path.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "measured.json",
        "r1-f16.gguf",
        "r1-imatrix-q2_k.gguf",
        "r1-imatrix-q3_k_m.gguf",
        "r1.imatrix",
    ]
    for path in (weighed["q2_k"].path, weighed["q3_k_m"].path, folder / "r1.imatrix"):
        assert json.loads(read_metadata(path)["curate.imatrix"]) == said
        assert read_metadata(path)["curate.version"] == "support@1"


def test_no_more_conversations_are_rendered_than_are_weighed(project, monkeypatch):
    source = find_source(project, "r1")
    everything = train_rows(project, source, ROWS)
    rendered = []

    def counted(conversations, *arguments):
        made = render(conversations, *arguments)
        rendered.append(made.height)
        return made.with_columns(problem=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("no")))

    monkeypatch.setattr("train.export.source.render", counted)
    found = train_rows(project, source, 3)
    assert found["id"].to_list() == [everything["id"][number] for number in (0, 2, 3)]
    assert rendered == [3, 3]


def test_its_numbers_are_the_mean_squares_of_what_goes_into_each_layer(project, weighed):
    import torch

    rows = train_rows(project, find_source(project, "r1"), ROWS)["input_ids"].to_list()
    with loaded(project.parent / "merged/r1") as model, torch.no_grad():
        words = model.model.embed_tokens(torch.tensor([token for row in rows for token in row]))
        expected = model.model.layers[0].input_layernorm(words).square().mean(dim=0).numpy()
    squares = read_imatrix(weighed["q2_k"].path.parent / "r1.imatrix").squares
    for part in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(squares[f"blk.0.{part}.weight"], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["q2_k", "q3_k_m"])
def test_rounding_by_it_costs_the_layers_less_and_the_model_no_more(files, weighed, kind):
    squares = read_imatrix(weighed[kind].path.parent / "r1.imatrix").squares
    exact, plain, by_it = (weights_of(file.path) for file in (files["f16"], files[kind], weighed[kind]))
    assert exact.keys() == plain.keys() == by_it.keys()
    for name, square in squares.items():
        errors = [float(((made[name] - exact[name]) ** 2 * square).sum()) for made in (by_it, plain)]
        assert errors[0] < errors[1], name
    others = [name for name in exact if name not in squares]
    assert all(np.array_equal(plain[name], by_it[name]) for name in others)
    assert weighed[kind].difference.kl <= 1.2 * files[kind].difference.kl  # 144 tokens: nats differ by that much


def weights_of(path):
    from gguf import GGUFReader, dequantize

    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def test_a_matrix_of_another_width_is_refused_before_anything_is_rounded(files, weighed, tmp_path):
    matrix = read_imatrix(weighed["q2_k"].path.parent / "r1.imatrix")
    short = replace(matrix, squares={name: square[:-32] for name, square in matrix.squares.items()})
    with pytest.raises(ExportError, match=r"The matrix has \d+ numbers for blk\.0\.\w+\.weight, whose rows have \d+"):
        round_by(short, files["f16"].path, files["q2_k"].path, tmp_path / "r1.gguf", 2)


def test_a_kind_that_takes_no_matrix_is_the_quantisers_own_to_the_byte(files, weighed, tmp_path):
    matrix = read_imatrix(weighed["q2_k"].path.parent / "r1.imatrix")
    alike = replace(matrix, squares={name: np.ones_like(square) for name, square in matrix.squares.items()})
    round_by(alike, files["f16"].path, files["q8_0"].path, tmp_path / "r1.gguf", 2)
    made, expected = weights_of(tmp_path / "r1.gguf"), weights_of(files["q8_0"].path)  # q8_0 takes no matrix
    assert all(np.array_equal(made[name], expected[name]) for name in expected)


def test_a_program_of_ones_own_is_handed_the_matrix(files, weighed, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text(f'#!/bin/sh\npwd > {tmp_path}/asked\nprintf "%s\\n" "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    matrix = weighed["q2_k"].path.parent / "r1.imatrix"
    quantise(Quantiser(program), files["f16"].path, tmp_path / "out.gguf", "q4_k_m", 2, imatrix=matrix)
    folder, *asked = (tmp_path / "asked").read_text().splitlines()
    said = f"curate.imatrix=str:{read_imatrix(matrix).as_text()}"
    assert asked[:4] == ["--imatrix", "r1.imatrix", "--override-kv", said]
    assert asked[4:] == [str(files["f16"].path), str(tmp_path / "out.gguf"), "q4_k_m", "2"]
    assert folder == str(matrix.parent)


def test_the_command_prints_a_table_whose_names_are_whole_in_80_columns(curate, project, weighed):
    folder = weighed["q3_k_m"].path.parent
    arguments = ["--quant", "q3_k_m", "--imatrix", "--rows", "1", "--to", str(folder)]
    ran = curate("gguf", "r1", *arguments, cwd=project.parent, COLUMNS="80")
    assert ran.returncode == 0, ran.stderr
    assert " r1-imatrix-q3_k_m.gguf " in ran.stdout
    assert " r1-imatrix-q2_k.gguf " in ran.stdout  # measured before, by the fixture
    found = json.loads((folder / "measured.json").read_text())["files"][1]["difference"]
    more = found["perplexity"] / found["reference_perplexity"] - 1
    (line,) = (line for line in ran.stdout.splitlines() if "q3_k_m" in line)
    assert f" {more:+.2%} " in line
    assert ("PPL" in line) == (more > 0.01)
    assert ("KL" in line) == (found["kl"] > 0.02)
    assert "f16 is compared with the merged model" in ran.stderr


# what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_kind_is_named_with_those_that_are_known(project):
    with pytest.raises(ExportError, match="no quantisation q9") as caught:
        quantise_run(project, "r1", ["q9"])
    assert "q4_k_m" in caught.value.hint


def test_a_file_of_another_adapter_is_not_written_over(project, files, tmp_path):
    config = tmp_path / "copy" / "adapters/r1/adapter_config.json"
    store = copy_project(project.parent, tmp_path / "copy")
    shutil.rmtree(store.parent / "merged")
    from train.model.adapter import adapter_digest

    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    manifest = json.loads((config.parent / "manifest.json").read_text())
    (config.parent / "manifest.json").write_text(
        json.dumps(manifest | {"adapter_digest": adapter_digest(config.parent)})
    )
    with pytest.raises(ExportError, match=r"r1-f16.gguf is already there, of another adapter"):
        quantise_run(store, "r1", [], check=False)


def test_a_missing_converter_is_named_with_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.setattr("train.export.llamacpp.locate.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for find, what in ((find_converter, "converter, convert_hf_to_gguf.py"), (find_quantiser, "quantiser")):
        with pytest.raises(ExportError, match=f"{what}.* not installed") as caught:
            find()
        assert install_command("gguf") in caught.value.hint
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


def test_a_run_of_all_weights_is_handed_over_as_it_is(tuned, tmp_path):
    store = copy_project(tuned, tmp_path / "copy")
    with pytest.raises(ExportError, match="r1 is a model already, there is nothing to merge"):
        merge(store, "r1")
    (file,) = quantise_run(store, "r1", [])
    assert file.difference.largest <= 1e-3 * file.difference.scale
    contract = check_serving(store, "r1")
    assert contract.kept
    assert [found.engine for found in contract.agreements] == [
        "training, generation prompt",
        "transformers, model",
        "llama.cpp, r1-f16.gguf",
    ]
