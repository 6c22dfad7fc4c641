"""A model's folder or name → its tokenizer, loaded by the `tokenizers` library, without torch.

The ids equal those of transformers for the same folder: the same added tokens, no truncation, no padding, and special
tokens only where the template renders them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, processors
from tokenizers import Tokenizer as Backend

from schemas.digest import digest
from schemas.errors import TrainError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that are variables of a chat template, as in transformers."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and its special tokens.

    `named` maps `bos_token` and others to their text; `stops` are the tokens at which the base model's generation ends.
    """

    folder: Path
    backend: Backend
    named: Mapping[str, str]
    stops: frozenset[str]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer in `folder`. Raises `TrainError` if there is none that the library can read."""
        backend = _backend(folder)
        config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        try:
            named = {name: _text(config[name]) for name in NAMED_TOKENS if config.get(name) is not None}
            _add_missing(backend, config, named)
            return cls(folder, backend, named, _stops(backend, folder, named))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise TrainError(
                f"The settings of the tokenizer in {folder} are not valid: {error}.", "Save the tokenizer again."
            ) from error

    @cached_property
    def specials(self) -> frozenset[str]:
        """Texts that this tokenizer encodes as one special token, wherever they occur."""
        added = self.backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @cached_property
    def special_text(self) -> re.Pattern[str]:
        """Matches the text of a special token; the longest one if several start at the same place."""
        longest_first = sorted(self.specials, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the ids: model, normalizer, pre-tokenizer and special tokens."""
        written = json.loads(self.backend.to_str())
        parts = {key: written[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return digest({**parts, "named": dict(self.named)})

    def encode(self, texts: list[str]) -> list[Encoding]:
        """The encodings of rendered texts, in parallel, without added special tokens."""
        return self.backend.encode_batch(texts, add_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self.backend.token_to_id(token)


def first_difference(ours: Sequence[int], others: Sequence[int]) -> int:
    """The index of the first token that differs; the shorter length if one sequence continues the other.

    >>> first_difference([1, 2, 3], [1, 4]), first_difference([1], [1, 2])
    (1, 1)
    """
    pairs = enumerate(zip(ours, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ours), len(others)))


def find_tokenizer(model: str) -> Path:
    """The folder with the tokenizer of `model`: a folder, or a name on the Hugging Face Hub (downloads small files).

    Raises `TrainError` if `model` is empty or cannot be found.
    """
    if not model:
        raise TrainError("No base model is named.", "Use --model FOLDER, or set model under [train] in the recipe.")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if len(Path(model).parts) != 2 or model.startswith((".", "~", "/")):
        raise TrainError(f"There is no model folder at {model}.", "Use a folder, or a name such as owner/model.")
    return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:  # the hub client raises many types
        raise TrainError(
            f"{model} is not a local folder, and its tokenizer cannot be downloaded: {str(error).splitlines()[0]}",
            "Use --model FOLDER with a tokenizer.json.",
        ) from error


def _backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise TrainError(
            f"{folder} has no tokenizer.json.",
            "Save it as a fast tokenizer: AutoTokenizer.from_pretrained(…).save_pretrained(folder).",
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise TrainError(f"{path} is not a valid tokenizer: {error}", "Save the tokenizer again.") from error
    backend.no_truncation()
    backend.no_padding()
    # Offsets must cover every character; other post-processors exclude spaces. The ids do not change.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _add_missing(backend: Backend, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Add tokens that tokenizer_config.json declares and tokenizer.json lacks, in the same order as transformers."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in _declared(config) if token.content not in known]
    known |= {token.content for token in missing}
    missing += [AddedToken(text, special=True, normalized=False) for text in named.values() if text not in known]
    backend.add_tokens(missing)


def _declared(config: Mapping[str, Any]) -> Iterator[AddedToken]:
    for _, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        flags = {
            key: token[key] for key in ("special", "normalized", "lstrip", "rstrip", "single_word") if key in token
        }
        yield AddedToken(token["content"], **flags)


def _stops(backend: Backend, folder: Path, named: Mapping[str, str]) -> frozenset[str]:
    """Texts of the tokens that end generation: the tokenizer's eos token and those of generation_config.json."""
    ids = _read_json(folder / "generation_config.json").get("eos_token_id") or []
    texts = [backend.id_to_token(number) for number in ([ids] if isinstance(ids, int) else ids)]
    return frozenset(text for text in (*texts, named.get("eos_token")) if text)


def _text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path} is not valid JSON: {error}.", "Save the tokenizer again.") from error
    return value if isinstance(value, dict) else {}
