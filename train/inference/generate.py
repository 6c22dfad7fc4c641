"""A base model, optionally with an adapter, and chat messages → generated answers, with the chat template of training.

One loaded model generates both with and without the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.manifest import read_manifest
from train.model.adapter_files import check_weights, read_template, verify_hint
from train.model.base_model import Method, find_base, load_model, model_digest
from train.model.load_errors import wrap_load_errors
from train.model.log_capture import quiet
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy decoding; otherwise the seed makes the result repeatable."""

    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_tokens, "do_sample": False}
        random = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.max_tokens, **random}


GREEDY = Sampling()


class _TextStreamer:
    """A streamer for transformers' `generate` that passes on the text of complete characters."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] | None = None
        self._sent = 0

    def put(self, value: Any) -> None:
        """Receive the prompt in the first call, then one token per call."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        text = self._tokenizer.backend.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # an incomplete UTF-8 character
            self._on_text(text[self._sent :])
            self._sent = len(text)

    def end(self) -> None:
        """Required by transformers."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A loaded model with its chat renderer and the ids at which it stops."""

    model: Any
    renderer: ChatRenderer
    stop_ids: Sequence[int]
    is_full_finetune: bool = False

    def answer(
        self,
        messages: Sequence[Message],
        *,
        base: bool = False,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Generate the answer to messages that end with a user message.

        With `base` the adapter is disabled. `on_text` is called with each new piece of text. Raises `TrainError` if
        `base` is requested of a full fine-tune.
        """
        import torch

        if base and self.is_full_finetune:
            raise TrainError(
                "This run trained all weights, so its base model is not available.", "Omit --base and --compare."
            )
        tokenizer = self.renderer.tokenizer
        encoded = tokenizer.encode([self.renderer.apply_template(messages, add_generation_prompt=True)])[0].ids
        ids = torch.tensor([encoded], device=self.model.device)
        torch.manual_seed(sampling.seed)
        with torch.inference_mode(), self.model.disable_adapter() if base else nullcontext():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                eos_token_id=list(self.stop_ids),
                pad_token_id=self.stop_ids[0],
                streamer=_TextStreamer(tokenizer, on_text) if on_text else None,
                **sampling.arguments(),
            )
        answer: str = tokenizer.backend.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        return answer.strip()


def load_chat_model(adapter: Path) -> ChatModel:
    """Load an adapter on its base model, in 4 bits if it was trained so, with the chat template of training.

    Raises `TrainError` if the base model differs from the one in the manifest, or a file of the adapter is missing or
    damaged.
    """
    manifest = read_manifest(adapter)
    check_weights(adapter, manifest)
    base = find_base(adapter, manifest)
    if model_digest(base) != manifest.model.digest:
        raise TrainError(
            f"The adapter in {adapter} was trained on a different model than the one in {base}: the digests differ.",
            f"Restore the model {manifest.model.name}; curate verify shows the details.",
        )
    method: Method = "qlora" if manifest.engine["method"] == "qlora" else "lora"
    is_full_finetune = manifest.engine["method"] == "full"
    model_folder, adapter_folder = (adapter, None) if is_full_finetune else (base, adapter)
    renderer = ChatRenderer(read_template(adapter, manifest), Tokenizer.load(model_folder))
    trusted = bool(manifest.recipe["trust_remote_code"])
    with wrap_load_errors(adapter, verify_hint(adapter)):
        model = load_for_inference(model_folder, method, adapter_folder, trust_remote_code=trusted)
    return ChatModel(model, renderer, find_stop_ids(renderer), is_full_finetune)


def load_for_inference(folder: Path, method: Method, adapter: Path | None, *, trust_remote_code: bool) -> Any:
    """Load a model, optionally with an adapter, in evaluation mode."""
    with quiet():
        model = load_model(folder, method, trust_remote_code=trust_remote_code)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    return model.eval()


def find_stop_ids(renderer: ChatRenderer) -> list[int]:
    """The ids that end an answer: the template's end-of-turn token, followed by those of the model's own config."""
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    spans = renderer.render({"conversations": turns}).loss_spans
    end_of_turn = [spans[-1].stop] if spans and spans[-1].stop else []
    tokens = [*end_of_turn, *sorted(renderer.tokenizer.stops)]
    ids = (renderer.tokenizer.id_of(token) for token in dict.fromkeys(tokens))
    return [number for number in ids if number is not None]
