"""Reports on chat templates, TEMPLATES.md, and the comparison with transformers before training."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import polars as pl
import pytest
from support.make_tokenizers import CHATML
from support.stores import add_version, chat
from support.training import TINY, make_project, run_here, section

from curate.cli.views.plans import templates_page
from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.plan.plan import plan
from train.plan.preflight import collect_samples
from train.plan.prepare import prepare_version
from train.runs.fit import train_version
from train.tokens.chat_template import BUNDLED_TEMPLATES, bundled_names, unsloth_templates
from train.tokens.template_check import check_token_ids
from train.tokens.template_parity import check_template, check_templates

PAGE = (BUNDLED_TEMPLATES / "TEMPLATES.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reports():
    try:
        version("unsloth")
    except PackageNotFoundError:
        pytest.skip("unsloth is not installed")
    return check_templates()


@pytest.mark.slow
def test_every_known_template_passes(reports):
    names = {name for report in reports for name in report.names}
    assert names == {*bundled_names(), *unsloth_templates()}
    assert len(unsloth_templates()) >= 47
    assert {report.names: report.problem for report in reports if report.problem} == {}
    assert all(report.identical == report.rendered >= 7 for report in reports)


@pytest.mark.slow
def test_templates_md_is_up_to_date(reports):
    page = templates_page(reports)
    table = [line for line in page.splitlines() if not line.startswith("Versions")]
    assert table == [line for line in PAGE.splitlines() if not line.startswith("Versions")]


def test_the_report_states_how_tools_reasoning_and_white_space_are_rendered(tokenizer):
    report = check_template(["plain"], CHATML, tokenizer)
    facts = (
        report.rendered,
        report.identical,
        report.stop,
        report.prefix,
        report.tools,
        report.reasoning,
        report.whitespace,
    )
    assert facts == (7, 7, "<|im_end|>", "holds", "calls left out", "all", "kept")
    trimming = CHATML.replace("message.content", "(message.content.split('</think>') | last | trim)")
    report = check_template(["trimming"], trimming, tokenizer)
    assert (report.reasoning, report.whitespace, report.problem) == ("none", "trimmed", None)
    assert check_template(["counting"], CHATML + "{{ messages | length }}", tokenizer).prefix == "no"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.role + m.content }}\n{% endfor %}", "No special token ends turn 2"),
        (CHATML.replace("message.content", "message.content[:3]"), "renders an answer differently when it is marked"),
        ("{{ bos_token + bos_token }}" + CHATML, "It begins with <s> twice."),
    ],
)
def test_the_command_prints_why_a_template_fails(tokenizer_dir, tmp_path, template, reason):
    (tmp_path / "mine.jinja").write_text(template)
    ran = run_here("templates", str(tmp_path / "mine.jinja"), "--model", str(tokenizer_dir))
    assert ran.exit_code == 1
    assert reason in " ".join(ran.output.split())


def test_the_command_reports_a_template_that_is_not_valid_jinja(curate, tokenizer_dir, tmp_path):
    (tmp_path / "mine.jinja").write_text(CHATML.replace("{% for", "{% forr"))
    ran = curate("templates", "mine.jinja", "--model", str(tokenizer_dir))
    assert ran.returncode == 1
    assert "is not valid Jinja" in ran.stderr


def test_if_marks_change_a_rendering_the_first_differing_token_is_reported(tokenizer):
    problem = check_template(["cutting"], CHATML.replace("message.content", "message.content[:3]"), tokenizer).problem
    assert problem is not None
    assert "token 11 is 'l', but '<|im_end|>' with marks" in problem


# --------------------------------------------------------------------------------------------------- before training


@pytest.fixture
def prepared(tmp_path, monkeypatch, tokenizer_dir):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "curate.duckdb"
    add_version(path, [chat("Hi", "<think>hm</think>Hello", *["And?", "No."] * 20), chat("Hi", "Hello")])
    recipe = TrainSection(model=str(tokenizer_dir), max_length=200, long="split", reasoning="strip")
    return prepare_version(path, "chats", recipe)


def test_every_window_of_a_version_is_compared_with_transformers(prepared, transformers_tokenizer):
    assert prepared.rendered["window"].drop_nulls().len() > 1
    samples = json.loads(json.dumps(collect_samples(prepared)))  # as another process receives them
    assert check_token_ids(samples, transformers_tokenizer) == prepared.rendered.height


def test_a_token_that_differs_from_transformers_stops_the_training(prepared, transformers_tokenizer):
    ids = pl.col("input_ids")
    wrong = pl.concat_list(ids.list.head(4), pl.lit(5, pl.Int32), ids.list.tail(ids.list.len() - 5))
    tampered = replace(prepared, rendered=prepared.rendered.with_columns(wrong.alias("input_ids")))
    with pytest.raises(TrainError, match=r"token 4 is 5 '<\|im_sep\|>' instead of 4 '<\|im_end\|>'"):
        check_token_ids(collect_samples(tampered), transformers_tokenizer)


def test_a_tokenizer_that_merges_the_end_of_the_generation_prompt_is_refused_with_that_template(prepared, tmp_path):
    store, recipe = tmp_path / "curate.duckdb", prepared.section.model_copy(update={"model": str(TINY)})
    assert collect_samples(prepare_version(store, "chats", recipe.model_copy(update={"template": "chatml"})))["rows"]
    merged = prepare_version(store, "chats", recipe.model_copy(update={"template": "llama-3"}))
    with pytest.raises(TrainError, match=r"The generation prompt of template llama-3 tokenizes differently") as refused:
        collect_samples(merged)
    assert "is 227 'Ċ' instead of 289 'ĊĊ'" in refused.value.what
    assert "such as chatml" in refused.value.hint
    prefixes = {report.names[0]: report.prefix for report in check_templates(TINY, ["chatml", "llama-3"])}
    assert prefixes == {"chatml": "holds", "llama-3": "no"}
    planned = plan(merged)
    assert (planned.refusal, planned.hint) == (refused.value.what, refused.value.hint)


def test_line_breaks_at_the_start_of_all_answers_are_a_warning_and_not_a_refusal(tmp_path):
    path = tmp_path / "curate.duckdb"
    add_version(path, [chat(f"Hi {number}", "\n\nHello there") for number in range(3)])
    recipe = TrainSection(model=str(TINY), template="chatml")
    prepared = prepare_version(path, "chats", recipe)
    planned = plan(prepared)
    assert (planned.refusal, len(collect_samples(prepared)["rows"])) == (None, 3)
    assert planned.warnings == {"tokens across the start of an answer": 3}
    refused = prepare_version(path, "chats", recipe.model_copy(update={"template": "llama-3"}))
    with pytest.raises(TrainError, match=r"The generation prompt of template llama-3 tokenizes differently"):
        collect_samples(refused)


@pytest.mark.slow
def test_a_run_refuses_if_transformers_loads_another_tokenizer(tmp_path):
    store = make_project(tmp_path)
    config = tmp_path / "tiny" / "tokenizer_config.json"
    written = json.loads(config.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    config.write_text(json.dumps(written))
    with pytest.raises(TrainError, match="gives other tokens for conversation") as refused:
        train_version(store, "support@1", section(model=str(tmp_path / "tiny"), engine="transformers"))
    assert "than transformers' apply_chat_template: token" in refused.value.what


def test_the_command_checks_one_template_with_the_tokenizer_of_a_model(sample):
    ran = run_here("templates", "tokenizer", "--model", str(sample / "tiny"), "--json")
    (report,) = json.loads(ran.stdout)
    assert ran.exit_code == 0
    assert (report["passed"], report["identical"], report["tools"]) == (True, 8, "tools and calls")
