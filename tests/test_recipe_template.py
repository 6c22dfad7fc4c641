"""`curate init`: the recipe that it writes is complete, valid and equal to the defaults."""

import re
import tomllib

from curate.recipe_template import recipe_text
from schemas.recipe import Recipe, TrainSection, load_recipe


def test_init_writes_a_recipe_with_all_defaults_and_overwrites_only_with_replace(curate, tmp_path):
    written = curate("init")
    assert written.returncode == 0
    assert "set a base model in it: model = … under [train]" in written.stdout
    assert load_recipe(tmp_path / "curate.toml") == Recipe()
    again = curate("init")
    assert again.returncode == 1
    assert "already exists" in again.stderr
    assert curate("init", "--replace").returncode == 0


def test_the_commented_examples_of_the_recipe_are_a_valid_recipe_with_every_key():
    lines = [line.removeprefix("#") if re.match(r"#\S", line) else line for line in recipe_text().splitlines()]
    written = tomllib.loads("\n".join(lines))
    assert Recipe.model_validate(written)
    assert set(written) == {field.alias or name for name, field in Recipe.model_fields.items()}
    assert set(written["train"]) == set(TrainSection.model_fields)
