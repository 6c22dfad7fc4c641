"""In: a base model, an adapter or none, prompts. Out: what the model answers, through the template of its training.

One model in memory answers with the adapter and without it, so before and after are the same weights but for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.manifest import read_manifest
from train.model.adapter_files import check_weights, explained_weights, read_template
from train.model.base_model import Method, find_base, load_model, model_digest
from train.model.log_capture import quiet
from train.tokens.chat_template import Template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: the same words every time; else the seed repeats them."""

    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_tokens, "do_sample": False}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.max_tokens, **drawn}


GREEDY = Sampling()


class _Letters:
    """What transformers hands each token to as it comes: tells the letters that are whole by now."""

    def __init__(self, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._say = say
        self._ids: list[int] | None = None
        self._told = 0

    def put(self, value: Any) -> None:
        """Take the prompt first, then one token after the other."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        text = self._tokenizer.backend.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a character of which some bytes are still to come
            self._say(text[self._told :])
            self._told = len(text)

    def end(self) -> None:
        """Nothing more comes."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A loaded model with its renderer."""

    model: Any
    renderer: ChatRenderer
    stops: Sequence[int]
    whole: bool = False  # all weights were tuned: the base is not in it

    def answer(
        self,
        messages: Sequence[Message],
        *,
        base: bool = False,
        sampling: Sampling = GREEDY,
        say: Callable[[str], None] | None = None,
    ) -> str:
        """The answer to a conversation that ends with a user.

        `base` leaves the adapter aside; `say` is called with every few letters as they come.
        """
        import torch

        if base and self.whole:
            raise TrainError(
                "All weights of this model were tuned, so its base is not in it.", "Leave --base and --compare out."
            )
        encoded = self.renderer.tokenizer.encode([self.renderer.apply_template(messages, add_generation_prompt=True)])[
            0
        ].ids
        ids = torch.tensor([encoded], device=self.model.device)
        torch.manual_seed(sampling.seed)
        with torch.inference_mode(), self.model.disable_adapter() if base else nullcontext():
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                eos_token_id=list(self.stops),
                pad_token_id=self.stops[0],
                streamer=_Letters(self.renderer.tokenizer, say) if say else None,
                **sampling.arguments(),
            )
        answer: str = self.renderer.tokenizer.backend.decode(
            written[0, ids.shape[1] :].tolist(), skip_special_tokens=True
        )
        return answer.strip()


def speak_for(adapter: Path) -> Speaker:
    """The adapter on its base model, loaded as it was trained (4-bit where that was so), with the template it learned.

    Raises `TrainError` when the base model is another one than the adapter was trained on, or a file of the adapter
    is missing or damaged.
    """
    manifest = read_manifest(adapter)
    check_weights(adapter, manifest)
    base = find_base(adapter, manifest)
    if model_digest(base) != manifest.model.digest:
        raise TrainError(
            f"The adapter in {adapter} was trained on another model than the one in {base}: their digests differ.",
            f"Put back the model {manifest.model.name} that it was trained on; curate verify says more.",
        )
    template = read_template(adapter, manifest)
    method: Method = "qlora" if manifest.engine["method"] == "qlora" else "lora"
    trusted = bool(manifest.recipe["trust_remote_code"])
    if manifest.engine["method"] == "full":
        return _speaker(adapter, template, method, None, trust_remote_code=trusted)
    return _speaker(base, template, method, adapter, trust_remote_code=trusted)


def _speaker(
    base: Path, template: Template, method: Method, adapter: Path | None, *, trust_remote_code: bool
) -> Speaker:
    renderer = ChatRenderer(template, Tokenizer.load(base))
    with quiet(), explained_weights(adapter or base):
        model = load_model(base, method, trust_remote_code=trust_remote_code)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    return Speaker(model.eval(), renderer, stop_ids(renderer), whole=adapter is None)


def stop_ids(renderer: ChatRenderer) -> list[int]:
    """Ids that end an answer: the token that this template ends a turn with, then those of the model's own config."""
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    regions = renderer.render({"conversations": turns}).loss_spans
    ending = [regions[-1].stop] if regions and regions[-1].stop else []
    names = [*ending, *sorted(renderer.tokenizer.stops)]
    ids = (renderer.tokenizer.id_of(name) for name in dict.fromkeys(names))
    return [number for number in ids if number is not None]
