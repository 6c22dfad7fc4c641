"""The contract: what serves sees the tokens of the training, and where it does not, the first one is shown."""

import json
import shutil
from dataclasses import replace

import pytest

from schemas.errors import ExportError
from train.checks.serving_parity import check_serving, probes
from train.export.llamacpp.convert import PRE_TOKENIZERS, convert
from train.export.llamacpp.locate import find_converter
from train.export.llamacpp.server import serving
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
    with serving(project.parent / "gguf/r1/r1-f16.gguf", context=512, threads=1, gpu=False) as address:
        yield address


def by_engine(contract):
    return {agreement.engine: agreement for agreement in contract.agreements}


def with_template(project, to, change):
    """The merged model with another template, and a GGUF of that."""
    model = shutil.copytree(project.parent / "merged/r1", to)
    template = model / "chat_template.jinja"
    text = template.read_text()
    assert change(text) != text
    template.write_text(change(text))
    return model


def gguf_with(project, to, **metadata):
    """The GGUF with other texts in its metadata."""
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


def test_every_engine_sees_the_tokens_of_the_training(project):
    contract = check_serving(project, "r1")
    assert contract.kept
    assert contract.absent == {}
    assert contract.conversations == 49  # 40 of the version, 9 that are odd on purpose
    expected = {
        "training, generation prompt": 49,
        "transformers, adapter": 49,
        "transformers, merged": 49,
        "llama.cpp, r1-f16.gguf": 49,
    }
    assert expected.items() <= {name: found.equal for name, found in by_engine(contract).items()}.items()


def test_one_space_in_the_template_is_found_and_shown_in_its_context(project, tmp_path):
    model = with_template(
        project, tmp_path / "model", lambda text: text.replace('assistant{{ "\\n"', 'assistant {{ "\\n"')
    )
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert (found.equal, found.kept) == (0, False)
    assert found.first.where == "prompt"
    assert found.first.before.endswith("<|im_end|>\n<|im_start|>assistant")
    assert (found.first.trained, found.first.served) == ("\n", " \n")


def test_a_difference_in_systems_alone_is_found_by_the_odd_conversations(project, tmp_path):
    model = with_template(
        project, tmp_path / "model", lambda text: text.replace("first.content if", "first.content | trim if")
    )
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert (found.conversations - found.equal, found.first.conversation) == (1, "probe: system")


def test_llama_cpp_with_another_template_is_found(project, tmp_path):
    file = gguf_with(
        project, tmp_path / "r1.gguf", template=template_of(project).replace("You may call", "You can call")
    )
    found = by_engine(check_serving(project, str(file)))["llama.cpp, r1.gguf"]
    assert (found.conversations - found.equal, found.first.conversation) == (2, "probe: tools")
    assert (found.first.trained.strip(), found.first.served.strip()) == ("may call these", "can call these")


def test_a_number_that_llama_cpp_shortens_is_told_with_its_reason_and_hides_no_other_difference(
    project, tmp_path, monkeypatch
):
    call = '{"name": "near", "arguments": {"longitude": -118.2437, "price": 3.0}}'
    turns = [("human", "Where?"), ("function_call", call), ("observation", "{}"), ("gpt", "There.")]
    numbers = {"id": "numbers", "conversations": [{"from": who, "value": said} for who, said in turns], "tools": None}
    monkeypatch.setattr("train.checks.serving_parity.probes", lambda source: [numbers])
    found = by_engine(check_serving(project, "r1", limit=1))
    assert found["transformers, merged"].kept
    first = found["llama.cpp, r1-f16.gguf"].first
    assert (first.conversation, first.why[:9]) == ("numbers", "llama.cpp")
    assert "six digits" in first.why
    monkeypatch.undo()
    monkeypatch.setattr("train.checks.serving_parity.probes", lambda source: [numbers, *probes(source)])
    file = gguf_with(project, tmp_path / "r1.gguf", template=template_of(project).replace("You may", "You can"))
    found = by_engine(check_serving(project, str(file), limit=1))["llama.cpp, r1.gguf"]
    assert (found.conversations - found.equal, found.first.why) == (3, "")


def test_the_same_words_in_other_tokens_have_no_known_reason(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) != "What"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    first = by_engine(check_serving(project, str(model), limit=1))["transformers, merged"].first
    assert first.trained.startswith("What")
    assert (first.served[:3], first.why) == ("Wha", "")


def test_digits_that_are_lost_outside_a_tool_call_or_by_another_engine_have_no_known_reason(project, monkeypatch):
    def changed(monkeypatch, engine, old, new):
        prompts = engine.encode_prompts

        def other(self, asked):
            asked = [replace(one, messages=json.loads(json.dumps(one.messages).replace(old, new))) for one in asked]
            return prompts(self, asked)

        monkeypatch.setattr(engine, "encode_prompts", other)

    call = '{"name": "near", "arguments": {"longitude": -118.2437}}'
    turns = [("human", "At 2.7182818?"), ("function_call", call), ("observation", "{}"), ("gpt", "There.")]
    numbers = {"id": "numbers", "conversations": [{"from": who, "value": said} for who, said in turns], "tools": None}
    monkeypatch.setattr("train.checks.serving_parity.probes", lambda source: [numbers])
    changed(monkeypatch, TransformersBackend, "-118.2437", "-118.244")
    changed(monkeypatch, LlamaCppBackend, "2.7182818", "2.71828")
    found = by_engine(check_serving(project, "r1", limit=1))
    assert {name: agreement.first.why for name, agreement in found.items() if agreement.first} == {
        "transformers, adapter": "",
        "transformers, merged": "",
        "llama.cpp, r1-f16.gguf": "",
    }


def test_a_template_that_llama_cpp_cannot_read_is_said_in_a_sentence(project, tmp_path):
    file = gguf_with(project, tmp_path / "r1.gguf", template=template_of(project) + "{% frobnicate %}")
    with pytest.raises(ExportError, match=r"llama.cpp cannot read the chat template in"):
        check_serving(project, str(file))


def test_a_stop_token_that_is_not_named_is_found(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 8}))
    found = by_engine(check_serving(project, str(model)))["transformers, merged"]
    assert found.equal == found.conversations
    assert found.stops == ("generation_config.json does not list 10 in eos_token_id",)
    assert not found.kept


def test_a_model_that_is_made_to_say_its_stop_token_stops_and_at_another_token_goes_on(server):
    engine = LlamaCppBackend("llama.cpp", server)
    assert engine.check_stop(10) is None
    assert "generation continued after token 300" in engine.check_stop(300)


# a day ------------------------------------------------------------------------------------------------------------


def test_a_template_that_asks_for_today_says_the_day_of_the_training_in_every_engine(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    words, level = (
        {"type": "Split", "pattern": {"Regex": LLAMA_WORDS}},
        {**tokenizer["pre_tokenizer"], "use_regex": False},
    )
    steps = [{**words, "behavior": "Isolated", "invert": False}, level]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    template = find_template("llama-3.1", model)
    (model / "chat_template.jinja").write_text(template.text, encoding="utf-8")
    renderer = ChatRenderer(template, Tokenizer.load(model))
    questions = [[{"role": "user", "content": "Hello"}], [{"role": "system", "content": "Be brief."}, *TALK]]
    asked = [RenderRequest(messages, None, "") for messages in questions]
    texts = [renderer.apply_template(messages, add_generation_prompt=True) for messages in questions]
    assert all("Today Date: 26 July 2024\n" in text for text in texts)  # what the template says where nobody tells it
    trained = [encoding.ids for encoding in renderer.tokenizer.encode(texts)]
    convert(find_converter(), model, tmp_path / "r1.gguf", "f16", metadata={}, stop=None)
    with serving(tmp_path / "r1.gguf", context=512, threads=1, gpu=False) as address:
        assert LlamaCppBackend("llama.cpp", address).encode_prompts(asked) == trained
    assert TransformersBackend("transformers", model).encode_prompts(asked) == trained


# an address ------------------------------------------------------------------------------------------------------


def test_an_address_is_asked_as_well(curate, project, server):
    arguments = ["check-serving", "r1", "--url", f"{server.url}/v1", "--api-key", server.key, "--limit", "3", "--json"]
    ran = curate(*arguments, cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["agreements"][-1]
    assert found["engine"] == f"llama.cpp at {server.url}/v1"
    assert found["equal"] == found["conversations"] == 12


def test_an_address_where_nobody_answers_is_explained(curate, project):
    ran = curate("check-serving", "r1", "--url", "http://127.0.0.1:9", "--limit", "1", cwd=project.parent)
    assert ran.returncode == 1
    assert "No server responds at http://127.0.0.1:9" in ran.stderr


def test_the_server_asks_for_its_key(server):
    with pytest.raises(RefusedError, match="Invalid API Key"):
        OpenAIClient(server.url).post("/completion", {"prompt": "Hello"})


# the command ------------------------------------------------------------------------------------------------------


def test_the_command_ends_with_1_and_shows_the_difference(curate, project, tmp_path):
    model = with_template(project, tmp_path / "model", lambda text: text.replace("system\n{{", "system \n{{"))
    ran = curate("check-serving", str(model), cwd=project.parent)
    assert ran.returncode == 1
    assert "transformers, merged, probe: " in ran.stdout
    assert "trained '\\n" in ran.stdout
    assert "NOT the same tokens" in ran.stdout


def test_what_is_not_there_is_named_with_the_command_that_brings_it(trained):
    contract = check_serving(trained / "curate.duckdb", "r1", limit=1)
    assert contract.absent == {"merged model": "curate merge r1", "llama.cpp": "curate gguf r1"}
    assert contract.kept


def test_a_file_that_names_no_run_and_a_run_of_another_store_are_refused(project, tmp_path):
    model = shutil.copytree(project.parent / "merged/r1", tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"adapter_digest": "0" * 64}))
    with pytest.raises(ExportError, match="a run r1 of another store"):
        check_serving(project, str(model))
    with pytest.raises(ExportError, match="does not say which run made it"):
        check_serving(project, str(gguf_with(project, tmp_path / "plain.gguf", manifest="")))


def test_an_export_is_checked_at_its_end(curate, project, tmp_path):
    ran = curate("merge", "r1", "--to", str(tmp_path / "again"), "--json", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["contract"]["kept"]
