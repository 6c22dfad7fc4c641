"""Ollama: the slots of a Modelfile's template equal those of the chat template, and Go fills them as curate does."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support.training import TINY

from schemas.errors import ExportError
from train.checks.serving_parity import check_serving
from train.export.go_template import find_slots, read_slots, to_go
from train.export.modelfile import collate, write_modelfile
from train.tokens.chat_template import Template, find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER, USER]]
TEMPLATES = ["tokenizer", "chatml", "gemma", "llama-3"]
BRACES = "{% for m in messages %}{{ '{{' }}{{ m.content }}}}{% endfor %}"


@pytest.fixture(scope="module")
def project(exported):
    return exported


@pytest.fixture(scope="module")
def export(project):
    return write_modelfile(project, "r1")


def renderer_of(template):
    return ChatRenderer(template, Tokenizer.load(TINY))


def fill(renderer, messages):
    return read_slots(to_go(find_slots(renderer))).fill(*collate(messages))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CHATS)
def test_the_filled_slots_of_the_go_template_equal_the_rendered_chat_template(name, messages):
    renderer = renderer_of(find_template(name, TINY))
    assert fill(renderer, messages) == renderer.apply_template(messages, add_generation_prompt=True)


def test_braces_of_a_template_stay_braces_in_go():
    assert fill(renderer_of(Template("braces", BRACES)), [USER, ANSWER, USER]) == "{{Hi}}{{Ho}}{{Hi}}"


def test_a_template_that_writes_messages_twice_cannot_be_written_for_ollama():
    twice = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ExportError, match="does not write each message once and in order"):
        find_slots(renderer_of(Template("twice", twice)))


@pytest.mark.parametrize("change", ["{{ if .System }}", "{{ .Tools }}", "{{- "])
def test_a_go_template_in_another_form_is_refused(change):
    template = to_go(find_slots(renderer_of(find_template("chatml", TINY))))
    with pytest.raises(ExportError, match="not in the form that curate ollama writes"):
        read_slots(template.replace("{{ range", f"{change}{{{{ range"))


GO_PROGRAM = """package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct{ Role, Content string }
type Case struct { Template, System string; Messages []Message }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	texts := []string{}
	for _, one := range cases {
		var out strings.Builder
		if err := template.Must(template.New("").Parse(one.Template)).Execute(&out, one); err != nil { panic(err) }
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
def test_go_renders_the_template_as_its_slots_are_filled(tmp_path):
    cases, expected = [], []
    for template in [*(find_template(name, TINY) for name in TEMPLATES), Template("braces", BRACES)]:
        slots = find_slots(renderer_of(template))
        for messages in CHATS:
            system, collated = collate(messages)
            cases.append({"Template": to_go(slots), "System": system, "Messages": collated})
            expected.append(slots.fill(system, collated))
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    command = ["go", "run", str(tmp_path / "main.go")]
    ran = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == expected


@pytest.mark.slow
def test_the_modelfile_has_template_stops_weights_and_the_versions_digest(export, project):
    text = (export.folder / "Modelfile").read_text()
    assert "FROM ../../gguf/r1/r1-q4_k_m.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert text.startswith("# support@1, ")
    assert "\nSYSTEM" not in text  # no conversation of the version has one
    assert (export.name, export.gguf.name) == ("support-1-r1", "r1-q4_k_m.gguf")
    assert {path.name for path in export.folder.iterdir()} == {"Modelfile", "manifest.json"}


@pytest.mark.slow
def test_a_modelfile_passes_the_check_and_requests_with_tools_are_skipped(export, project):
    report = check_serving(project, str(export.folder))
    ollama = report.engines[-1]
    assert report.passed
    assert (ollama.engine, ollama.equal, ollama.conversations, ollama.skipped) == ("Ollama, Modelfile", 47, 47, 2)
    assert "Ollama itself is not run" in ollama.note


@pytest.mark.slow
def test_an_additional_space_in_the_modelfile_is_found(export, project):
    folder = Path(shutil.copytree(export.folder, export.folder.with_name("changed")))
    text = (folder / "Modelfile").read_text()
    (folder / "Modelfile").write_text(text.replace("<|im_start|>user\n{{ else }}", "<|im_start|>user \n{{ else }}"))
    ollama = check_serving(project, str(folder)).engines[-1]
    assert (ollama.conversations - ollama.equal, ollama.first_mismatch.conversation) == (1, "probe: system")
    assert (ollama.first_mismatch.trained[0], ollama.first_mismatch.served[0]) == ("\n", " ")


@pytest.mark.slow
def test_the_command_writes_and_checks_a_modelfile_and_overwrites_nothing(curate, project, export):
    ran = curate("ollama", "r1", "--to", "mine", "--json", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["parity"]["passed"]
    folder = project.parent / "mine"
    before = (folder / "Modelfile").stat().st_mtime_ns
    assert write_modelfile(project, "r1", to=folder).folder == folder
    assert (folder / "Modelfile").stat().st_mtime_ns == before  # an identical export is left unchanged
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"loss_tokens"', '"learned"'))  # its key in earlier releases
    write_modelfile(project, "r1", to=folder)
    assert '"learned"' in manifest.read_text()
    (folder / "Modelfile").write_text("FROM mine.gguf\n")
    with pytest.raises(ExportError, match="already exists"):
        write_modelfile(project, "r1", to=folder)
    with pytest.raises(ExportError, match="There is no q5_0 GGUF") as caught:
        write_modelfile(project, "r1", to=project.parent / "other", quant="q5_0")
    assert caught.value.hint == "curate gguf r1 --quant q5_0"
