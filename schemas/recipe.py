"""The recipe: one TOML file that says everything a person decides, from column mapping to learning rate.

`load_recipe` reads `curate.toml`, lays `--set section.key=value` over it and checks the whole: an unknown key or
a wrong value is refused, all of them at once, each with the nearest known name. Two digests follow from it: the
data part (score, select, freeze) belongs to a version, the train part to a run.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.errors import RecipeError, nearest
from schemas.review import DECISION, ISSUES, QUALITY, STANDARD_QUESTIONS, Policy, StandardQuestion

DEFAULT_RECIPE = Path("curate.toml")

OPTIONS = "the options"
"""What an error is said of that no file brought."""

TOO_DEEP = "a value is nested too deep"

AUTO_COUNTS_AS = 2
"""What `batch = "auto"` stands for in batch times accumulate, so that a measured batch does not change the steps."""

SECRET_KEY = re.compile(r"(hub|auth|access|api)_?(token|key)|password|secret", re.IGNORECASE)
SECRET = re.compile(r"\bhf_\w{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@")
"""Keys and values that open an account: those of Hugging Face, OpenAI, GitHub and AWS, and passwords in addresses."""


class Section(BaseModel):
    """A part of the recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ImportSection(Section):
    """How rows are read. Command-line options of `curate import` say the same things."""

    shape: str | None = Field(
        None,
        description="alpaca, pairs, sharegpt, messages, transcript, long or text; found if left out",
        examples=["pairs"],
    )
    encoding: str | None = Field(None, description="such as cp1252; UTF-8 if left out", examples=["cp1252"])
    map: dict[str, str] = Field(
        {}, description="which column is which part of a conversation", examples=[{"question": "body"}]
    )
    repair: tuple[str, ...] = Field((), description="names of repairs to apply, such as trailing-user")
    group_by: str | None = Field(
        None, description="long format: the column that names the conversation", examples=["ticket"]
    )
    order_by: str | None = Field(
        None, description="long format: the column that orders its turns", examples=["created_at"]
    )
    role: str | None = Field(None, description="long format: the column that says who speaks", examples=["author"])
    text: str | None = Field(None, description="long format and texts: the column with the words", examples=["body"])
    format: str | None = Field(
        None, description="csv, tsv, jsonl, json or parquet; found if left out", examples=["jsonl"]
    )
    max_rejects: float = Field(1.0, ge=0, le=1, description="share of a file's rows that may be rejected")


class DedupSection(Section):
    """Which conversations are near-duplicates, and whom of them to prefer."""

    similarity: float = Field(
        0.8, ge=0.5, le=1, description="share of five words in a row that two have in common (Jaccard)"
    )
    prefer: str | None = Field(
        None,
        description="an order, whom to keep first; if left out, whom most others resemble, and of equals the longest",
        examples=["quality desc"],
    )


class SelectSection(Section):
    """Which conversations stay: every rule must hold. A rule is an SQL expression over scores and metadata."""

    rules: dict[str, str] = Field(
        {},
        description="the rules: a name of your choice = what must be true",
        examples=[{"good": "quality >= 0.6", "english": "language = 'en'"}],
    )

    @field_validator("rules")
    @classmethod
    def _check_names(cls, rules: dict[str, str]) -> dict[str, str]:
        """Selections and versions state the rule of `curate select --where` under this name."""
        if "--where" in rules:
            raise ValueError("--where is an option of the command line, give the rule another name")
        return rules


class QuestionSection(Section):
    """A question of one's own, beside the standard ones: its answers are kept and measured, and decide nothing."""

    kind: Literal["rating", "choice", "labels", "text"]
    title: str
    options: tuple[int | str, ...] = ()
    required: bool = False

    @model_validator(mode="after")
    def _check_options(self) -> QuestionSection:
        if self.kind != "text" and len(self.options) < 2:
            raise ValueError(f"a question of kind {self.kind} needs two options or more")
        if self.kind == "rating" and not all(isinstance(option, int) and 0 <= option <= 10 for option in self.options):
            raise ValueError("the options of a rating are whole numbers from 0 to 10")
        return self


class ReviewSection(Section):
    """What people are asked about conversations, and how their answers become verdicts."""

    questions: tuple[StandardQuestion, ...] = Field(
        STANDARD_QUESTIONS,
        description="quality 1-5, keep / fix / drop, issues, turns not to learn from, corrected last answer, note",
    )
    labels: tuple[str, ...] = Field(
        ("wrong", "unfinished", "off-topic", "unsafe", "style", "refusal", "boilerplate"),
        description="the issues to choose from; one that is the name of a yes-or-no score is suggested by it",
    )
    guidelines: str = Field("", description="what reviewers should know, shown beside the questions")
    policy: str = Field(
        "majority",
        description="any-drop, majority, expert, or a mean such as mean >= 3.5, which yields where more than half of"
        " the people say drop or fix; but under any-drop, who keeps an answer as it is votes against rewriting it",
    )
    experts: tuple[str, ...] = Field(
        (), description="policy expert: whose decision wins, the first named first; who only rates decides nothing"
    )
    overlap: int = Field(1, ge=1, description="how many people answer for each conversation")
    blind: float = Field(0.1, ge=0, le=1, description="share shown without suggestions, to measure what these do")
    more: dict[str, QuestionSection] = Field(
        {},
        description="further questions: a name of your choice = kind (rating, choice, labels, text), title, options",
        examples=[{"tone": {"kind": "choice", "title": "How does it sound?", "options": ["warm", "cold"]}}],
    )

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, text: str) -> str:
        return str(Policy.read(text))

    @model_validator(mode="after")
    def _check_questions(self) -> ReviewSection:
        needed = QUALITY if Policy.read(self.policy).name == "mean" else DECISION
        if needed not in self.questions:
            raise ValueError(f"the policy {self.policy} needs the question {needed}")
        if self.policy == "expert" and not self.experts:
            raise ValueError("the policy expert needs names in experts")
        if ISSUES in self.questions and len(set(self.labels)) < 2:
            raise ValueError("the question issues needs two labels or more")
        if clash := set(self.more) & set(STANDARD_QUESTIONS):
            raise ValueError(f"more.{min(clash)} has the name of a standard question")
        return self


class FreezeSection(Section):
    """How a version is split."""

    held_out: float = Field(0.05, ge=0, lt=1, description="share kept away from training, by content hash")
    salt: str = Field("", description="change it to draw another split")


class TrainSection(Section):
    """How an adapter is trained. What is not named here goes into `extra`, to the trainer as it is."""

    engine: str = Field("unsloth", description="unsloth or transformers")
    model: str = Field("", description="folder or name of the base model")
    method: Literal["auto", "qlora", "lora", "full"] = Field(
        "auto",
        description="adapter on a 4-bit base (qlora) or on the base as it is (lora), or all weights (full); "
        "auto: qlora on a GPU",
    )
    template: str = Field(
        "tokenizer", description="the tokenizer's own, a known name, a Jinja file; raw for texts in which nobody asks"
    )
    max_length: int = Field(2048, ge=8, description="tokens per pack and per conversation")
    long: Literal["refuse", "drop", "truncate", "split"] = Field(
        "refuse",
        description="what happens to a longer conversation: truncate cuts behind an answer, split makes windows of "
        "whole exchanges that keep the system turn",
    )
    max_dropped: float = Field(0.0, ge=0, le=1, description="share of conversations that may be dropped")
    max_truncated: float = Field(0.0, ge=0, le=1, description="share of conversations that may be truncated")
    reasoning: Literal["learn", "skip", "strip"] = Field(
        "learn",
        description="<think>…</think> before an answer: skip shows it without learning it, strip takes it out of all "
        "answers but those to the last question",
    )
    special_text: Literal["drop", "keep"] = Field(
        "drop", description="what happens when an answer holds the text of a special token, such as <|im_end|>"
    )
    rank: int = Field(16, ge=1, description="LoRA r")
    alpha: int = Field(16, ge=1, description="LoRA alpha")
    learning_rate: float = Field(2e-4, gt=0, description="step size at its peak")
    embedding_learning_rate: float | None = Field(
        None,
        gt=0,
        description="trains the embedding and the head as well, with this step size: for texts of a new language or "
        "field, a fifth to a tenth of learning_rate",
        examples=[5e-5],
    )
    epochs: float = Field(1.0, gt=0, description="passes over the data, unless steps is given")
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs", examples=[60])
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="packs (or conversations, unpacked) per forward pass; auto: the fastest that fits, measured"
    )
    accumulate: int = Field(4, ge=1, description="forward passes per optimiser step; auto counts as a batch of 2")
    effective_batch: int | None = Field(
        None, ge=1, description="packs per optimiser step on all GPUs together, instead of accumulate", examples=[16]
    )
    max_memory: float | None = Field(None, gt=0, description="GiB of the GPU that may be used", examples=[12.0])
    packing: bool = Field(True, description="several conversations in one sequence, kept apart in attention")
    save_every: int = Field(50, ge=1, description="steps between checkpoints")
    eval_every: int | None = Field(
        None, ge=1, description="steps between held-out losses; the best adapter is kept", examples=[50]
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many held-out losses that were no better", examples=[3]
    )
    track: tuple[str, ...] | None = Field(
        None,
        description="where losses are shown: tensorboard, wandb, mlflow, trackio; tensorboard if it is installed",
        examples=[("tensorboard",)],
    )
    seed: int = Field(3407, description="of everything that is drawn by lot")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; the bits of the result depend on it", examples=[2]
    )
    deterministic: bool = Field(False, description="only kernels that repeat bit for bit; slower on a GPU")
    trust_remote_code: bool = Field(False, description="run Python that comes with the base model; recorded")
    extra: dict[str, Any] = Field(
        {}, description="further arguments of the trainer, handed on and recorded", examples=[{"weight_decay": 0.01}]
    )

    @field_validator("extra", mode="after")
    @classmethod
    def _keeps_no_secret(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """A recipe is written into manifests and cards: what opens an account comes from the environment."""
        secret = [key for key, value in extra.items() if SECRET_KEY.search(key) or SECRET.search(str(value))]
        if secret:
            raise ValueError(
                f"{', '.join(secret)} looks like a secret, and the manifest would show it: set it in the environment"
            )
        return extra

    @property
    def packs_per_step(self) -> int:
        """Packs (or conversations, unpacked) of one optimiser step, over all forward passes and GPUs."""
        return self.effective_batch or self.accumulate * (AUTO_COUNTS_AS if self.batch == "auto" else self.batch)


class Recipe(Section):
    """The whole of `curate.toml`."""

    import_: ImportSection = Field(ImportSection(), alias="import")
    score: dict[str, dict[str, Any]] = Field(
        {},
        description="parameters of scorers; the others run with their defaults",
        examples=[{"ngram_repetition": {"n": 4}}],
    )
    dedup: DedupSection = DedupSection()
    select: SelectSection = SelectSection()
    review: ReviewSection = ReviewSection()
    freeze: FreezeSection = FreezeSection()
    train: TrainSection = TrainSection()

    def data_part(self) -> dict[str, Any]:
        """The decisions that make a version: how it was scored, selected and split."""
        return self.model_dump(mode="json", include={"score", "select", "freeze"})

    def train_part(self) -> dict[str, Any]:
        """The decisions that make an adapter of a version."""
        return self.train.model_dump(mode="json")


def parse_share(text: str, option: str) -> float:
    """The share that a person wrote: `5%` or `0.05`. Raises `RecipeError` that names the option.

    >>> parse_share("5%", "--held-out"), parse_share("0.05", "--held-out")
    (0.05, 0.05)
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if rest or not 0 <= share <= 1:
        raise RecipeError(f"{option} {text!r} is no share.", f"Write {option} 5% or {option} 0.05.")
    return share


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file at `path` (default: `curate.toml` if there is one) under `section.key=value` overrides.

    Raises `RecipeError` for a missing or broken file, and for every unknown key or wrong value, all at once, each
    said of the file or of the options, whichever brought it.
    """
    if path is None:
        path = DEFAULT_RECIPE if DEFAULT_RECIPE.exists() else None
    written = {} if path is None else _read_toml(path)
    of_file = _problems(written)
    for override in overrides:
        _override(written, override)
    return _checked(written, lambda problem: str(path) if problem in of_file else OPTIONS)


def check_recipe(written: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that `written` spells. Raises `RecipeError` with all problems and the nearest known names."""
    return _checked(written, lambda _: where)


def _checked(written: Mapping[str, Any], place_of: Callable[[str], str]) -> Recipe:
    """The recipe, after every problem is said of its place."""
    try:
        return Recipe.model_validate(written)
    except ValidationError as error:
        places: dict[str, list[str]] = {}
        for problem in _told(error):
            places.setdefault(place_of(problem), []).append(problem)
        wrong = " and ".join(OPTIONS if place == OPTIONS else "the recipe" for place in places)
        raise RecipeError(
            "; ".join(f"{place}: {'; '.join(problems)}" for place, problems in places.items()),
            f"Correct {wrong}; `curate init` writes a full recipe.",
        ) from error
    except RecursionError as error:  # of keys that were written with dots
        raise RecipeError(f"{place_of(TOO_DEEP)}: {TOO_DEEP}.", "Correct the recipe.") from error


def _problems(written: Mapping[str, Any]) -> list[str]:
    try:
        Recipe.model_validate(written)
    except ValidationError as error:
        return _told(error)
    except RecursionError:
        return [TOO_DEEP]
    return []


def _told(error: ValidationError) -> list[str]:
    return [_problem(details["type"], details["loc"], details["msg"]) for details in error.errors()]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad writes a mark in front
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe at {path}.", "curate init writes one.") from error
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except _NO_TOML as error:
        raise RecipeError(f"{path} is no valid TOML: {error}.", "Correct it; text needs quotes in TOML.") from error


_NO_TOML = (ValueError, RecursionError)
"""What tomllib raises: its own error, that of a text which is no UTF-8, of a number too long, of lists too deep."""


def _override(written: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections:
        raise RecipeError(f"--set {override!r} is not section.key=value.", "For example: --set train.steps=20")
    for section in sections:
        inner = written.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override!r}: {section} is no section.", "For example: --set train.steps=20")
        written = inner
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {"value": text.strip()}
    except _NO_TOML as error:
        raise RecipeError(f"--set {key.strip()} is no valid TOML: {error}.", "Give another value.") from error
    if len(read) > 1:
        raise RecipeError(f"--set {override!r} says more than one thing.", "Give each a --set of its own.")
    written[last] = read["value"]


def _problem(kind: str, location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    return f"{key} is not a known key{nearest(key, _known_keys(Recipe)).rstrip('.')}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{key}.")
