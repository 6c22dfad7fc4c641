"""Recipe files and `--set` options: merged values, and an error that names the place of every mistake."""

import subprocess
import sys

import pytest

from schemas.errors import RecipeError
from schemas.recipe import check_recipe, load_recipe


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text("[train]\nsteps = 4\n[score.words]\n", encoding="utf-8")
    return path


def test_options_override_the_file(recipe):
    loaded = load_recipe(recipe, ["train.steps=7", "score.ngram_repetition.n=4", "train.model=a folder"])
    assert (loaded.train.steps, loaded.train.model) == (7, "a folder")
    assert loaded.score == {"words": {}, "ngram_repetition": {"n": 4}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "is not section.key=value"),
        ("steps=3", "is not section.key=value"),
        ("train.steps.x=3", "steps is not a section"),
        ("train.stepz=3", "did you mean train.steps"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
    ],
)
def test_an_invalid_option_is_rejected(recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])


def test_an_error_in_an_option_is_not_reported_for_the_file(recipe):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, ["train.stepz=5"])
    assert error.value.what == "the options: train.stepz is not a known key, did you mean train.steps?"
    assert error.value.hint == "Correct the options; `curate init` writes a complete recipe."
    recipe.write_text("[train]\nrnak = 4\nsteps = 'many'\n", encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, ["train.stepz=5", "train.steps=3"])
    assert error.value.what == (
        f"{recipe}: train.rnak is not a known key, did you mean train.rank?; "
        "the options: train.stepz is not a known key, did you mean train.steps?"
    )
    assert error.value.hint == "Correct the recipe and the options; `curate init` writes a complete recipe."
    assert load_recipe(None, ["train.steps=3"]).train.steps == 3


def test_an_error_of_file_and_option_together_is_reported_for_the_option(recipe):
    recipe.write_text("[review]\npolicy = 'expert'\nexperts = ['ada']\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"the options: review: .* requires names in experts"):
        load_recipe(recipe, ["review.experts=[]"])


def test_an_option_below_a_key_that_is_not_a_section_is_rejected(recipe):
    recipe.write_text("score = 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="score is not a section"):
        load_recipe(recipe, ["score.words.x=1"])


def test_an_unreadable_recipe_is_named(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"The recipe nowhere\.toml does not exist"):
        load_recipe(recipe.with_name("nowhere.toml").relative_to(tmp_path))
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    recipe.write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_recipe(recipe)


def test_init_on_a_full_disk_leaves_no_recipe(tmp_path, curate):
    """A limit on file sizes simulates the disk. A truncated recipe without rules would keep every conversation."""
    code = (
        "import resource; from curate.cli.app import main; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99)); main()"
    )
    command = [sys.executable, "-P", "-c", code, "init"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Error: curate.toml cannot be written: File too large.")
    assert list(tmp_path.iterdir()) == []
    assert curate("init").returncode == 0
    assert load_recipe(tmp_path / "curate.toml") == check_recipe({}, "the test")


def test_a_recipe_with_a_byte_order_mark_and_windows_line_endings_is_read(tmp_path):
    (tmp_path / "curate.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert load_recipe(tmp_path / "curate.toml").train.steps == 7


LONG, DEEP = "1" * 5000, "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("value", [LONG, DEEP], ids=["long", "deep"])
def test_a_value_that_the_toml_parser_cannot_read_is_rejected(tmp_path, value):
    path = tmp_path / "curate.toml"
    path.write_text(f"[train.extra]\nx = {value}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"curate\.toml is not valid TOML: ") as file_error:
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"--set train\.extra\.x is not valid TOML: ") as option_error:
        load_recipe(None, [f"train.extra.x={value}"])
    assert all(len(error.value.what) < 600 for error in (file_error, option_error))


def test_keys_that_nest_too_deeply_are_rejected():
    with pytest.raises(RecipeError, match="the options: a value is nested too deep"):
        load_recipe(None, [f"train.extra.{'a.' * 3000}x=1"])


@pytest.mark.parametrize("text", ["3\ny = 4", "3\r\n[train]", '"x"\ny = 3'])
def test_an_option_with_more_than_one_value_is_rejected(text):
    with pytest.raises(RecipeError, match="sets more than one key"):
        load_recipe(None, [f"import.map.question={text}"])


def test_an_option_may_hold_a_text_of_several_lines():
    for text in ("Be kind.\nBe brief.", '"""Be kind.\nBe brief."""'):
        assert load_recipe(None, [f"review.guidelines={text}"]).review.guidelines == "Be kind.\nBe brief."
    assert load_recipe(None, ["review.labels=[\n'a',\n'b'\n]"]).review.labels == ("a", "b")


def test_a_rule_named_like_an_option_is_rejected_because_no_version_could_record_it():
    with pytest.raises(RecipeError, match=r"select.rules: .*--where is reserved for the command-line option"):
        check_recipe({"select": {"rules": {"--where": "words > 1"}}}, "the test")
