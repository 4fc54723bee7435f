"""One base with several versions' adapters on it, each with its own tokenizer and template."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.policy.base import load_tokenizer_from
from pipelines.policy.chat import Decoding
from pipelines.policy.served import load_served
from pipelines.product import load as load_product
from pipelines.serving.generation import Slot, Told, answered, prompt_of
from pipelines.serving.openai_form import Answer, Asked, BadRequest
from pipelines.serving.placed import Placed


@dataclass
class Models:
    """What answers: a base, and the versions on it by name. One of them is at work at a time."""

    model: Any
    longest: int  # tokens of a prompt with its answer
    slots: dict[str, Slot]
    lock: threading.Lock = field(default_factory=threading.Lock)
    _loaded: int = 0

    @staticmethod
    def of(placed: Placed) -> "Models":
        """The base of a version with its adapter. Raises UserError where files differ from what is pinned."""
        served = load_served(placed.settings, placed.adapter)
        slot = _slot(placed, "default", served.tokenizer)
        longest = int(getattr(served.model.config, "max_position_embeddings", 0) or served.tokenizer.model_max_length)
        return Models(served.model, longest, {placed.name: slot})

    def load(self, placed: Placed) -> None:
        """Puts a further version's adapter on the base. Raises BadRequest where that name is taken."""
        if placed.name in self.slots:
            raise BadRequest(f"lora_name: {placed.name} is loaded already", "lora_name")
        folder = load_product(placed.adapter).folder
        tokenizer = load_tokenizer_from(folder)
        with self.lock:
            self._loaded += 1
            adapter = f"loaded_{self._loaded}"
            self.model.load_adapter(str(folder), adapter_name=adapter)
            self.model.eval()
            self.slots[placed.name] = _slot(placed, adapter, tokenizer)

    def unload(self, name: str) -> None:
        """Takes a version's adapter off. Raises BadRequest where it isn't there, or is the only one."""
        slot = self.slot(name)
        if len(self.slots) == 1:
            raise BadRequest(f"lora_name: {name} is the only one that answers", "lora_name")
        with self.lock:
            del self.slots[name]
            self.model.set_adapter(next(iter(self.slots.values())).adapter)
            self.model.delete_adapter(slot.adapter)

    def slot(self, name: str) -> Slot:
        """The version that a request names. Raises BadRequest (404) where there is none."""
        if name not in self.slots:
            raise BadRequest(f"model: no {name!r} here", "model", "model_not_found", status=404)
        return self.slots[name]

    def prompt(self, slot: Slot, asked: Asked) -> tuple[list[int], Decoding]:
        """The prompt's tokens and how the answer is made. Raises BadRequest where they don't fit the model."""
        from jinja2.exceptions import TemplateError

        try:
            tokens = prompt_of(slot, asked.messages, asked.tools)
        except (TemplateError, TypeError) as error:
            raise BadRequest(f"messages: the chat template refuses them: {error}", "messages") from error
        # Without a word on its length an answer is as long as it was evaluated, and as there is room.
        limit = asked.limit or max(1, min(slot.max_new_tokens, self.longest - len(tokens)))
        if len(tokens) + limit > self.longest:
            raise BadRequest(
                f"messages: {len(tokens)} tokens and up to {limit} of the answer are over the {self.longest} that the "
                "model takes",
                "messages",
                "context_length_exceeded",
            )
        return tokens, Decoding(limit, stop=asked.stop)

    def answer(self, slot: Slot, prompt: list[int], decoding: Decoding, tell: Told, gone: Callable[[], bool]) -> Answer:
        """As evaluated: greedily, alone. Raises Gone where `gone` says that nobody waits any more."""
        with self.lock:
            self.model.set_adapter(slot.adapter)
            return answered(self.model, slot, prompt, decoding, tell, gone)


def _slot(placed: Placed, adapter: str, tokenizer: Any) -> Slot:
    settings = placed.settings
    return Slot(placed.name, adapter, tokenizer, settings["template"], settings["max_new_tokens"], placed.digest[:12])
