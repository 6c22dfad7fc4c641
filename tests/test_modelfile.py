"""Ollama: the Modelfile's template, rendered by Go's rules, says what the training said."""

import json
import shutil
from pathlib import Path

import pytest
from support.training import TINY

from schemas.errors import ExportError
from train.checks.go_templates import parse, render
from train.checks.serving_parity import check_serving
from train.export.go_template import to_go
from train.export.modelfile import collate, write_ollama
from train.tokens.chat_template import Template, find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def project(exported):
    return exported


@pytest.fixture(scope="module")
def written(project):
    return write_ollama(project, "r1")


def go(renderer, messages):
    system, together = collate(messages)
    return render(parse(to_go(renderer)), {"System": system, "Messages": together})


@pytest.mark.parametrize("name", ["tokenizer", "chatml", "gemma", "llama-3"])
@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER, USER]],
)
def test_the_go_template_says_what_the_chat_template_says(name, messages):
    renderer = ChatRenderer(find_template(name, TINY), Tokenizer.load(TINY))
    assert go(renderer, messages) == renderer.apply_template(messages, add_generation_prompt=True)


def test_braces_of_a_template_stay_braces_in_go():
    braces = "{% for m in messages %}{{ '{{' }}{{ m.content }}}}{% endfor %}"
    renderer = ChatRenderer(Template("braces", braces), Tokenizer.load(TINY))
    assert go(renderer, [USER, ANSWER, USER]) == "{{Hi}}{{Ho}}{{Hi}}"


def test_a_template_that_writes_words_twice_cannot_be_written_for_ollama():
    twice = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ExportError, match="does not write each message once and in order"):
        to_go(ChatRenderer(Template("twice", twice), Tokenizer.load(TINY)))


# Beside each template what Go 1.27's own text/template makes of it.
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{- if and .System (not false) -}}  x {{ .System }} {{- end }}", "x s"),
        ('{{ if eq .System "" "s" }}yes{{ else if .System }}{{ "q" }}{{ else }}no{{ end }} {{ eq 1 1 }}', "yes true"),
        (
            "{{ range $i, $m := .Messages }}{{ if ne $i 0 }},{{ end }}{{ $m.Role }}={{ len .Content }}{{ end }}",
            "user=2",
        ),
        ('{{ $x := "a" }}{{ if .System }}{{ $x = "b" }}{{ end }}{{ $x }}{{ or .Missing "none" }}', "bnone"),
    ],
)
def test_a_go_template_is_rendered_as_go_does(template, text):
    values = {"System": "s", "Messages": [{"Role": "user", "Content": "é"}]}
    assert render(parse(template), values) == text


@pytest.mark.parametrize("template", ["{{ if .System }}", "{{ printf `%s` }}", "{{ $nothing }}"])
def test_what_is_not_understood_of_go_is_refused(template):
    with pytest.raises(ExportError, match="The Go template"):
        render(parse(template), {"System": "s"})


@pytest.mark.slow
def test_the_modelfile_has_template_stops_weights_and_the_versions_digest(written, project):
    text = (written.folder / "Modelfile").read_text()
    assert "FROM ../../gguf/r1/r1-q4_k_m.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert text.startswith("# support@1, ")
    assert "\nSYSTEM" not in text  # no conversation of the version has one
    assert (written.name, written.gguf.name) == ("support-1-r1", "r1-q4_k_m.gguf")
    assert {path.name for path in written.folder.iterdir()} == {"Modelfile", "manifest.json"}


@pytest.mark.slow
def test_the_contract_holds_for_ollama_and_tools_are_refused_not_rendered_otherwise(written, project):
    contract = check_serving(project, str(written.folder))
    ollama = contract.agreements[-1]
    assert contract.kept
    assert (ollama.engine, ollama.equal, ollama.conversations, ollama.unserved) == ("Ollama, Modelfile", 47, 47, 2)


@pytest.mark.slow
def test_a_space_more_in_the_modelfile_is_found(written, project):
    folder = Path(shutil.copytree(written.folder, written.folder.with_name("spoilt")))
    text = (folder / "Modelfile").read_text()
    (folder / "Modelfile").write_text(text.replace("<|im_start|>user\n{{ else }}", "<|im_start|>user \n{{ else }}"))
    ollama = check_serving(project, str(folder)).agreements[-1]
    assert (ollama.conversations - ollama.equal, ollama.first.conversation) == (1, "probe: system")
    assert (ollama.first.trained[0], ollama.first.served[0]) == ("\n", " ")


@pytest.mark.slow
def test_the_command_writes_proves_and_writes_nothing_over(curate, project, written):
    ran = curate("ollama", "r1", "--to", "mine", "--json", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["contract"]["kept"]
    folder = project.parent / "mine"
    before = (folder / "Modelfile").stat().st_mtime_ns
    assert write_ollama(project, "r1", to=folder).folder == folder
    assert (folder / "Modelfile").stat().st_mtime_ns == before  # the same is left as it is
    (folder / "Modelfile").write_text("FROM mine.gguf\n")
    with pytest.raises(ExportError, match="is already there"):
        write_ollama(project, "r1", to=folder)
    with pytest.raises(ExportError, match="There is no GGUF of q5_0") as caught:
        write_ollama(project, "r1", to=project.parent / "other", quant="q5_0")
    assert caught.value.hint == "curate gguf r1 --quant q5_0"
