"""Serving parity: inference engines produce the token ids of training; the first mismatch is reported."""

import json
import shutil
from dataclasses import replace

import pytest

from schemas.errors import ExportError
from train.checks.serving_parity import build_probes, check_serving
from train.export.llamacpp.convert import PRE_TOKENIZERS, convert
from train.export.llamacpp.locate import find_converter
from train.export.llamacpp.server import ServeOptions, run_server
from train.inference.backends import LlamaCppBackend, RenderRequest, TransformersBackend
from train.inference.openai_client import OpenAIClient, RefusedError
from train.tokens.chat_template import find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

LLAMA_WORDS = next(expression for expression, name in PRE_TOKENIZERS.items() if name == "llama-bpe")
TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


@pytest.fixture(scope="module")
def project(exported):
    return exported


@pytest.fixture(scope="module")
def server(project):
    with run_server(project.parent / "gguf/r1/r1-f16.gguf", ServeOptions(context=512), threads=1, gpu=False) as client:
        yield client


def by_engine(report):
    return {engine.engine: engine for engine in report.engines}


def with_template(project, to, change):
    """A copy of the merged model with another template."""
    model = shutil.copytree(project.parent / "merged/r1", to)
    template = model / "chat_template.jinja"
    text = template.read_text()
    assert change(text) != text
    template.write_text(change(text))
    return model


def gguf_with(project, to, **metadata):
    """A copy of the GGUF with other metadata."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = GGUFReader(project.parent / "gguf/r1/r1-f16.gguf")
    names = {"template": "tokenizer.chat_template", "manifest": "curate.manifest"}
    changed = {names[key]: value for key, value in metadata.items()}
    kinds = {name: MetadataDetails(reader.fields[name].types[0], text) for name, text in changed.items() if text}
    writer = GGUFWriter(to, reader.fields["general.architecture"].contents())
    copy_with_new_metadata(reader, writer, kinds, [name for name, text in changed.items() if not text])
    return to


def template_of(project):
    return (project.parent / "merged/r1/chat_template.jinja").read_text()


def test_every_engine_produces_the_training_tokens(project):
    report = check_serving(project, "r1")
    assert report.passed
    assert report.missing == {}
    assert report.conversations == 49  # 40 of the version, 9 probes
    expected = {
        "training, generation prompt": 49,
        "transformers, adapter": 49,
        "transformers, merged": 49,
        "llama.cpp, r1-f16.gguf": 49,
    }
    assert expected.items() <= {name: engine.equal for name, engine in by_engine(report).items()}.items()


def test_an_additional_space_in_the_template_is_found_and_shown_in_context(project, tmp_path):
    model = with_template(
        project, tmp_path / "model", lambda text: text.replace('assistant{{ "\\n"', 'assistant {{ "\\n"')
    )
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert (found.equal, found.passed) == (0, False)
    assert found.first_mismatch.where == "prompt"
    assert found.first_mismatch.before.endswith("<|im_end|>\n<|im_start|>assistant")
    assert (found.first_mismatch.trained, found.first_mismatch.served) == ("\n", " \n")


def test_a_difference_in_system_messages_only_is_found_by_a_probe(project, tmp_path):
    model = with_template(
        project, tmp_path / "model", lambda text: text.replace("first.content if", "first.content | trim if")
    )
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert (found.conversations - found.equal, found.first_mismatch.conversation) == (1, "probe: system")


def test_another_template_in_a_gguf_is_found(project, tmp_path):
    file = gguf_with(
        project, tmp_path / "r1.gguf", template=template_of(project).replace("You may call", "You can call")
    )
    found = by_engine(check_serving(project, str(file)))["llama.cpp, r1.gguf"]
    assert (found.conversations - found.equal, found.first_mismatch.conversation) == (2, "probe: tools")
    assert (found.first_mismatch.trained.strip(), found.first_mismatch.served.strip()) == (
        "may call these",
        "can call these",
    )


def test_a_number_rounded_by_llama_cpp_is_reported_with_its_reason_and_hides_no_other_mismatch(
    project, tmp_path, monkeypatch
):
    call = '{"name": "near", "arguments": {"longitude": -118.2437, "price": 3.0}}'
    turns = [("human", "Where?"), ("function_call", call), ("observation", "{}"), ("gpt", "There.")]
    numbers = {"id": "numbers", "conversations": [{"from": role, "value": text} for role, text in turns], "tools": None}
    monkeypatch.setattr("train.checks.serving_parity.build_probes", lambda source: [numbers])
    found = by_engine(check_serving(project, "r1", limit=1))
    assert found["transformers, merged"].passed
    first = found["llama.cpp, r1-f16.gguf"].first_mismatch
    assert (first.conversation, first.reason[:9]) == ("numbers", "llama.cpp")
    assert "six digits" in first.reason
    monkeypatch.undo()
    monkeypatch.setattr("train.checks.serving_parity.build_probes", lambda source: [numbers, *build_probes(source)])
    file = gguf_with(project, tmp_path / "r1.gguf", template=template_of(project).replace("You may", "You can"))
    found = by_engine(check_serving(project, str(file), limit=1))["llama.cpp, r1.gguf"]
    assert (found.conversations - found.equal, found.first_mismatch.reason) == (3, "")


def test_the_same_text_in_other_tokens_has_no_known_reason(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) != "What"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    first = by_engine(check_serving(project, str(model), limit=1))["transformers, merged"].first_mismatch
    assert first.trained.startswith("What")
    assert (first.served[:3], first.reason) == ("Wha", "")


def test_rounding_outside_a_tool_call_or_by_another_engine_has_no_known_reason(project, monkeypatch):
    def change_messages(monkeypatch, engine, old, new):
        prompts = engine.encode_prompts

        def encode(self, requests):
            requests = [
                replace(one, messages=json.loads(json.dumps(one.messages).replace(old, new))) for one in requests
            ]
            return prompts(self, requests)

        monkeypatch.setattr(engine, "encode_prompts", encode)

    call = '{"name": "near", "arguments": {"longitude": -118.2437}}'
    turns = [("human", "At 2.7182818?"), ("function_call", call), ("observation", "{}"), ("gpt", "There.")]
    numbers = {"id": "numbers", "conversations": [{"from": role, "value": text} for role, text in turns], "tools": None}
    monkeypatch.setattr("train.checks.serving_parity.build_probes", lambda source: [numbers])
    change_messages(monkeypatch, TransformersBackend, "-118.2437", "-118.244")
    change_messages(monkeypatch, LlamaCppBackend, "2.7182818", "2.71828")
    found = by_engine(check_serving(project, "r1", limit=1))
    assert {name: engine.first_mismatch.reason for name, engine in found.items() if engine.first_mismatch} == {
        "transformers, adapter": "",
        "transformers, merged": "",
        "llama.cpp, r1-f16.gguf": "",
    }


def test_a_template_that_llama_cpp_cannot_read_is_an_error(project, tmp_path):
    file = gguf_with(project, tmp_path / "r1.gguf", template=template_of(project) + "{% frobnicate %}")
    with pytest.raises(ExportError, match=r"llama.cpp cannot read the chat template in"):
        check_serving(project, str(file))


def test_a_missing_stop_token_is_found(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 8}))
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert found.equal == found.conversations
    assert found.stop_problems == ("generation_config.json does not list 10 in eos_token_id",)
    assert not found.passed


def test_generation_stops_at_the_forced_stop_token_and_continues_at_another_token(server):
    backend = LlamaCppBackend("llama.cpp", server)
    assert backend.check_stop(10) is None
    assert "generation continued after token 300" in backend.check_stop(300)


# dates ----------------------------------------------------------------------------------------------------------------


def test_every_engine_renders_the_pinned_date_of_training(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    split, level = (
        {"type": "Split", "pattern": {"Regex": LLAMA_WORDS}},
        {**tokenizer["pre_tokenizer"], "use_regex": False},
    )
    steps = [{**split, "behavior": "Isolated", "invert": False}, level]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    template = find_template("llama-3.1", model)
    (model / "chat_template.jinja").write_text(template.text, encoding="utf-8")
    renderer = ChatRenderer(template, Tokenizer.load(model))
    questions = [[{"role": "user", "content": "Hello"}], [{"role": "system", "content": "Be brief."}, *TALK]]
    requests = [RenderRequest(messages, None, "") for messages in questions]
    texts = [renderer.apply_template(messages, add_generation_prompt=True) for messages in questions]
    assert all("Today Date: 26 July 2024\n" in text for text in texts)  # the template's default date
    trained = [encoding.ids for encoding in renderer.tokenizer.encode(texts)]
    convert(find_converter(), model, tmp_path / "r1.gguf", "f16", metadata={}, stop=None)
    with run_server(tmp_path / "r1.gguf", ServeOptions(context=512), threads=1, gpu=False) as client:
        assert LlamaCppBackend("llama.cpp", client).encode_prompts(requests) == trained
    assert TransformersBackend("transformers", model).encode_prompts(requests) == trained


# running servers ------------------------------------------------------------------------------------------------------


def test_a_running_server_is_checked_as_well(curate, project, server):
    arguments = ["check-serving", "r1", "--url", f"{server.url}/v1", "--api-key", server.key, "--limit", "3", "--json"]
    ran = curate(*arguments, cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["engines"][-1]
    assert found["engine"] == f"llama.cpp at {server.url}/v1"
    assert found["equal"] == found["conversations"] == 12


def test_an_unreachable_server_is_an_error(curate, project):
    ran = curate("check-serving", "r1", "--url", "http://127.0.0.1:9", "--limit", "1", cwd=project.parent)
    assert ran.returncode == 1
    assert "No server responds at http://127.0.0.1:9" in ran.stderr


def test_a_request_without_the_api_key_is_refused(server):
    with pytest.raises(RefusedError, match="Invalid API Key"):
        OpenAIClient(server.url).post("/completion", {"prompt": "Hello"})


# the command ------------------------------------------------------------------------------------------------------


def test_the_command_exits_with_1_and_shows_the_mismatch(curate, project, tmp_path):
    model = with_template(project, tmp_path / "model", lambda text: text.replace("system\n{{", "system \n{{"))
    ran = curate("check-serving", str(model), cwd=project.parent)
    assert ran.returncode == 1
    assert "transformers, merged, probe: " in ran.stdout
    assert "trained '\\n" in ran.stdout
    assert "token ids DIFFER from training" in ran.stdout


def test_missing_exports_are_listed_with_their_commands(trained):
    report = check_serving(trained / "curate.duckdb", "r1", limit=1)
    assert report.missing == {"merged model": "curate merge r1", "llama.cpp": "curate gguf r1"}
    assert report.passed


def test_a_gguf_without_a_run_and_a_run_of_another_store_are_refused(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"adapter_digest": "0" * 64}))
    with pytest.raises(ExportError, match="run r1 of another store"):
        check_serving(project, str(model))
    with pytest.raises(ExportError, match="does not name the run that it was made from"):
        check_serving(project, str(gguf_with(project, tmp_path / "plain.gguf", manifest="")))


def test_a_new_export_is_checked(curate, project, tmp_path):
    ran = curate("merge", "r1", "--to", str(tmp_path / "again"), "--json", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["parity"]["passed"]
