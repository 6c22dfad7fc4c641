"""The recipe: what a file and the options say, and every way of saying it wrongly, refused in a sentence."""

import pytest

from schemas.errors import RecipeError
from schemas.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text("[train]\nsteps = 4\n[score.words]\n", encoding="utf-8")
    return path


def test_options_lie_over_the_file(recipe):
    loaded = load_recipe(recipe, ["train.steps=7", "score.ngram_repetition.n=4", "train.model=a folder"])
    assert (loaded.train.steps, loaded.train.model) == (7, "a folder")
    assert loaded.score == {"words": {}, "ngram_repetition": {"n": 4}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "is not section.key=value"),
        ("steps=3", "is not section.key=value"),
        ("train.steps.x=3", "steps is no section"),
        ("train.stepz=3", "did you mean train.steps"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
    ],
)
def test_an_option_that_says_nothing_is_refused(recipe, override, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, [override])


def test_an_option_below_what_is_no_section_in_the_file_is_refused(recipe):
    recipe.write_text("score = 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="score is no section"):
        load_recipe(recipe, ["score.words.x=1"])


def test_a_recipe_that_cannot_be_read_is_named(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"There is no recipe at nowhere\.toml"):
        load_recipe(recipe.with_name("nowhere.toml").relative_to(tmp_path))
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    recipe.write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="is no valid TOML"):
        load_recipe(recipe)
