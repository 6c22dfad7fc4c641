"""`curate.toml` and `--set section.key=value` → the recipe: every decision of the user, from columns to learning rate.

Unknown keys and invalid values are rejected, all in one error, each with the nearest known name. The data part (score,
select, freeze) is stored with a version, the train part with a run.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from schemas.errors import RecipeError, nearest
from schemas.import_recipe import ImportSection
from schemas.review import DECISION, ISSUES, QUALITY, STANDARD_QUESTIONS, KindName, Policy, StandardQuestion
from schemas.section import Section
from schemas.version_recipe import FreezeSection, MixPart, check_shares

DEFAULT_RECIPE = Path("curate.toml")

OPTIONS = "the options"
"""The place named in errors that come from `--set`, not from a file."""

TOO_DEEP = "a value is nested too deep"

AUTO_COUNTS_AS = 2
"""The batch that `batch = "auto"` counts as in batch × accumulate, so that an auto-tuned batch keeps the steps."""

SECRET_KEY = re.compile(r"(hub|auth|access|api)_?(token|key)|password|secret", re.IGNORECASE)
SECRET = re.compile(r"\bhf_\w{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@")
"""Keys and values that grant access: tokens of Hugging Face, OpenAI, GitHub and AWS, and passwords in URLs."""


class DedupSection(Section):
    """Which conversations are near-duplicates, and which one of a cluster is kept."""

    similarity: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="minimum Jaccard similarity of the 5-word shingles; of the words if one text has fewer than 50",
    )
    prefer: str | None = Field(
        None,
        description="an SQL order, the first one is kept; by default the most central conversation, then the longest",
        examples=["quality desc"],
    )


class SelectSection(Section):
    """The filter: a conversation is kept if every rule holds. A rule is an SQL condition on scores and metadata."""

    rules: dict[str, str] = Field(
        {},
        description="name of your choice = condition that must be true",
        examples=[{"good": "quality >= 0.6", "english": "language = 'en'"}],
    )

    @field_validator("rules")
    @classmethod
    def _check_names(cls, rules: dict[str, str]) -> dict[str, str]:
        """Reserve `--where`, under which selections and versions record the command-line rule."""
        if "--where" in rules:
            raise ValueError("--where is reserved for the command-line option; give the rule another name")
        return rules


class QuestionSection(Section):
    """An additional question: its answers are stored and measured, but do not affect verdicts."""

    kind: KindName
    title: str
    options: tuple[int | str, ...] = ()
    required: bool = False

    @model_validator(mode="after")
    def _check_options(self) -> QuestionSection:
        if self.kind != "text" and len(self.options) < 2:
            raise ValueError(f"a question of kind {self.kind} needs at least two options")
        if self.kind == "rating" and not all(isinstance(option, int) and 0 <= option <= 10 for option in self.options):
            raise ValueError("the options of a rating must be integers from 0 to 10")
        return self


class ReviewSection(Section):
    """The questions for annotators, and the policy that turns answers into verdicts."""

    questions: tuple[StandardQuestion, ...] = Field(
        STANDARD_QUESTIONS,
        description="quality 1-5, keep / fix / drop, issues, turns to exclude from the loss, corrected last answer, "
        "note",
    )
    labels: tuple[str, ...] = Field(
        ("wrong", "unfinished", "off-topic", "unsafe", "style", "refusal", "boilerplate"),
        description="the issues to choose from; one named like a boolean score is suggested by that score",
    )
    renamed: dict[str, str] = Field(
        {},
        description="former names of labels and options = current ones; answers with a former name count as the "
        "current one",
        examples=[{"incorrect": "wrong"}],
    )
    guidelines: str = Field("", description="instructions for annotators, shown next to the questions")
    policy: str = Field(
        "majority",
        description="any-drop, majority, expert, or a minimum mean rating such as mean >= 3.5, which is overridden if "
        "more than half answer drop or fix; an annotator who keeps the original answer votes against edits, "
        "except under any-drop",
    )
    experts: tuple[str, ...] = Field(
        (),
        description="policy expert: the annotators who decide, in order of precedence; a rating alone is not a "
        "decision",
    )
    overlap: int = Field(1, ge=1, description="answers per conversation")
    blind: float = Field(0.1, ge=0, le=1, description="share shown without suggestions, to measure suggestion bias")
    more: dict[str, QuestionSection] = Field(
        {},
        description="additional questions: name of your choice = kind (rating, choice, labels, text), title, options",
        examples=[{"tone": {"kind": "choice", "title": "How does it sound?", "options": ["warm", "cold"]}}],
    )

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, text: str) -> str:
        return str(Policy.parse(text))

    @model_validator(mode="after")
    def _check_questions(self) -> ReviewSection:
        needed = QUALITY if Policy.parse(self.policy).name == "mean" else DECISION
        if needed not in self.questions:
            raise ValueError(f"the policy {self.policy} requires the question {needed}")
        if self.policy == "expert" and not self.experts:
            raise ValueError("the policy expert requires names in experts")
        if ISSUES in self.questions and len(set(self.labels)) < 2:
            raise ValueError("the question issues requires at least two labels")
        options = {str(option) for question in self.more.values() for option in question.options}
        if former := sorted(set(self.renamed) & (options | set(self.labels))):
            raise ValueError(f"renamed.{former[0]} is a current label; remove it from the labels or from renamed")
        if unknown := sorted(set(self.renamed.values()) - options - set(self.labels)):
            raise ValueError(f"renamed has the current name {unknown[0]}, which is not a label or an option")
        if clash := set(self.more) & set(STANDARD_QUESTIONS):
            raise ValueError(f"more.{min(clash)} has the name of a standard question")
        return self


MOST = 2**31 - 1
"""The largest number of steps, tokens or rows that the libraries of a training can count."""


class TrainSection(Section):
    """How an adapter is trained. Other trainer arguments go into `extra`, which is passed on unchanged."""

    engine: str = Field("unsloth", description="unsloth or transformers")
    model: str = Field("", description="folder or name of the base model")
    method: Literal["auto", "qlora", "lora", "full"] = Field(
        "auto",
        description="adapter on a 4-bit base (qlora) or an unquantised base (lora), or all weights (full); auto: "
        "qlora on a GPU",
    )
    template: str = Field(
        "tokenizer",
        description="chat template: tokenizer for the tokenizer's own, a name, or a Jinja file; raw for plain-text "
        "pretraining",
    )
    max_length: int = Field(2048, ge=8, le=MOST, description="maximum tokens per pack and per conversation")
    long: Literal["refuse", "drop", "truncate", "split"] = Field(
        "refuse",
        description="longer conversations: truncate cuts after an answer, split makes windows of complete exchanges "
        "that keep the system turn",
    )
    max_dropped: float = Field(0.0, ge=0, le=1, description="maximum share of dropped conversations")
    max_truncated: float = Field(0.0, ge=0, le=1, description="maximum share of truncated conversations")
    reasoning: Literal["learn", "skip", "strip"] = Field(
        "learn",
        description="<think>…</think> before an answer: learn includes it in the loss, skip does not, strip removes "
        "it from all answers except those to the last question",
    )
    special_text: Literal["drop", "keep"] = Field(
        "drop", description="conversations in which an answer contains the text of a special token, such as <|im_end|>"
    )
    rank: int = Field(16, ge=1, le=65_536, description="LoRA r")
    alpha: int = Field(16, ge=1, le=MOST, description="LoRA alpha")
    learning_rate: float = Field(2e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    embedding_learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="trains embedding and output head, too, at this learning rate: for a new language or domain, a "
        "fifth to a tenth of learning_rate",
        examples=[5e-5],
    )
    epochs: float = Field(1.0, gt=0, le=1e6, description="epochs, unless steps is given")
    steps: int | None = Field(None, ge=1, le=MOST, description="optimiser steps, instead of epochs", examples=[60])
    batch: Annotated[int, Field(ge=1, le=MOST)] | Literal["auto"] = Field(
        "auto",
        description="packs (or conversations, unpacked) per forward pass; auto: the fastest that fits, by measurement",
    )
    accumulate: int = Field(
        4, ge=1, le=MOST, description="gradient accumulation steps; batch = auto counts as a batch of 2"
    )
    effective_batch: int | None = Field(
        None, ge=1, le=MOST, description="packs per optimiser step over all GPUs, instead of accumulate", examples=[16]
    )
    max_memory: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="GPU memory limit in GiB", examples=[12.0]
    )
    packing: bool = Field(True, description="several conversations per sequence, without attention between them")
    save_every: int = Field(50, ge=1, le=MOST, description="steps between checkpoints")
    eval_every: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="steps between evaluations of the held-out loss; the best adapter is kept",
        examples=[50],
    )
    patience: int | None = Field(
        None, ge=1, le=MOST, description="early stopping: evaluations without improvement", examples=[3]
    )
    track: tuple[str, ...] | None = Field(
        None,
        description="experiment trackers: tensorboard, wandb, mlflow, trackio; by default tensorboard if installed",
        examples=[("tensorboard",)],
    )
    seed: int = Field(3407, ge=0, lt=1 << 32, description="random seed")
    threads: int | None = Field(
        None, ge=1, le=4_096, description="CPU threads; they change the bits of the result", examples=[2]
    )
    deterministic: bool = Field(False, description="use only bit-reproducible kernels; slower on a GPU")
    trust_remote_code: bool = Field(False, description="run Python code of the base model; recorded in the manifest")
    extra: dict[str, Any] = Field(
        {}, description="further trainer arguments, passed on and recorded", examples=[{"weight_decay": 0.01}]
    )

    @field_validator("extra", mode="after")
    @classmethod
    def _keeps_no_secret(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """Reject secrets: recipes are copied into manifests and cards, secrets belong in the environment."""
        secret = [key for key, value in extra.items() if SECRET_KEY.search(key) or SECRET.search(str(value))]
        if secret:
            raise ValueError(
                f"{', '.join(secret)} looks like a secret, and the manifest would show it: set it in the environment"
            )
        return extra

    @property
    def packs_per_step(self) -> int:
        """Packs (or conversations, unpacked) per optimiser step, over all forward passes and GPUs."""
        return self.effective_batch or self.accumulate * (AUTO_COUNTS_AS if self.batch == "auto" else self.batch)


class Recipe(Section):
    """The whole of `curate.toml`."""

    import_: ImportSection = Field(ImportSection(), alias="import")
    score: dict[str, dict[str, Any]] = Field(
        {},
        description="scorer parameters; other scorers run with their defaults",
        examples=[{"ngram_repetition": {"n": 4}}],
    )
    dedup: DedupSection = DedupSection()
    select: SelectSection = SelectSection()
    review: ReviewSection = ReviewSection()
    freeze: FreezeSection = FreezeSection()
    mix: dict[str, MixPart] = Field(
        {},
        description="name of your choice = a condition, and the share, count or epochs of its conversations in an "
        "epoch; other conversations are used once, or share the rest",
        examples=[
            {
                "support": {"where": "file = 'tickets.csv'", "share": 0.6},
                "gold": {"where": "quality >= 0.95", "epochs": 3},
            }
        ],
    )
    train: TrainSection = TrainSection()

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, mix: dict[str, MixPart]) -> dict[str, MixPart]:
        check_shares(mix)
        return mix

    def data_part(self) -> dict[str, Any]:
        """The sections that determine a version: score, select, freeze, and mix if there is one."""
        part = self.model_dump(mode="json", include={"score", "select"}) | {"freeze": self.freeze.data_part()}
        mix = {name: part.model_dump(mode="json", exclude_none=True) for name, part in self.mix.items()}
        return part | ({"mix": mix} if mix else {})


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file at `path` (default: `curate.toml` if it exists) with `section.key=value` overrides.

    Raises `RecipeError` for a missing or broken file, and one for all unknown keys and invalid values, each attributed
    to the file or the options.
    """
    if path is None:
        path = DEFAULT_RECIPE if DEFAULT_RECIPE.exists() else None
    written = {} if path is None else _read_toml(path)
    of_file = _problems(written)
    for override in overrides:
        _override(written, override)
    return _validate(written, lambda problem: str(path) if problem in of_file else OPTIONS)


def check_recipe(written: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a parsed file. Raises `RecipeError` with all problems and the nearest known names."""
    return _validate(written, lambda _: where)


def _validate(written: Mapping[str, Any], place_of: Callable[[str], str]) -> Recipe:
    """The recipe; every problem is attributed to `place_of` it."""
    try:
        return Recipe.model_validate(written)
    except ValidationError as error:
        places: dict[str, list[str]] = {}
        for problem in _describe(error):
            places.setdefault(place_of(problem), []).append(problem)
        wrong = " and ".join(OPTIONS if place == OPTIONS else "the recipe" for place in places)
        raise RecipeError(
            "; ".join(f"{place}: {'; '.join(problems)}" for place, problems in places.items()),
            f"Correct {wrong}; `curate init` writes a complete recipe.",
        ) from error
    except RecursionError as error:  # keys written with dots
        raise RecipeError(f"{place_of(TOO_DEEP)}: {TOO_DEEP}.", "Correct the recipe.") from error


def _problems(written: Mapping[str, Any]) -> list[str]:
    try:
        Recipe.model_validate(written)
    except ValidationError as error:
        return _describe(error)
    except RecursionError:
        return [TOO_DEEP]
    return []


def _describe(error: ValidationError) -> list[str]:
    return [_problem(details["type"], details["loc"], details["msg"]) for details in error.errors()]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Notepad writes a byte order mark
        if len(text) > MOST_CHARACTERS:
            raise RecipeError(
                f"{path} has {len(text):,} characters; the maximum of a recipe is {MOST_CHARACTERS:,}.", "Shorten it."
            )
        if _LONG_KEY.search(text):  # tomllib takes time and memory by the square of its length
            raise RecipeError(f"{path}: {TOO_DEEP}.", "Correct the recipe.")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise RecipeError(f"The recipe {path} does not exist.", "Create one with: curate init") from error
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except _TOML_ERRORS as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.", "Correct it; strings need quotes in TOML.") from error


MOST_CHARACTERS = 1 << 20

_LONG_KEY = re.compile(r"""(?:[\w"'-]+[ \t]*\.[ \t]*){64}""")

_TOML_ERRORS = (ValueError, RecursionError)
"""Errors of tomllib: invalid TOML or UTF-8, integers that are too long, lists nested too deep."""


def _override(written: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections:
        raise RecipeError(f"--set {override!r} is not section.key=value.", "For example: --set train.steps=20")
    for section in sections:
        inner = written.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override!r}: {section} is not a section.", "For example: --set train.steps=20")
        written = inner
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {"value": text.strip()}
    except _TOML_ERRORS as error:
        raise RecipeError(f"--set {key.strip()} is not valid TOML: {error}.", "Give another value.") from error
    if len(read) > 1:
        raise RecipeError(f"--set {override!r} sets more than one key.", "Use one --set per key.")
    written[last] = read["value"]


def _problem(kind: str, location: tuple[int | str, ...], message: str) -> str:
    if location[:2] == ("import", "substitute") and kind in ("tuple_type", "missing", "too_long"):
        return f"{'.'.join(map(str, location[:3]))} should be [pattern, replacement]"
    key = ".".join(str(part) for part in location)
    if kind == "tuple_type":
        return f"{key} should be a list"
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    return f"{key} is not a known key{nearest(key, _known_keys(Recipe, location)).rstrip('.')}"


def _known_keys(section: type[BaseModel], location: Sequence[int | str], prefix: str = "") -> Iterator[str]:
    """All keys of a section; in tables with names of the user's choice, those below the name in `location`."""
    for name, field in section.model_fields.items():
        alias = field.alias or name
        inner = location[1:] if location[:1] == (alias,) else ()
        yield f"{prefix}{alias}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, inner, f"{prefix}{alias}.")
        elif get_origin(field.annotation) is dict and inner:
            value = get_args(field.annotation)[1]
            if isinstance(value, type) and issubclass(value, BaseModel):
                yield from _known_keys(value, inner[1:], f"{prefix}{alias}.{inner[0]}.")
