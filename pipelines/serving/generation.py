"""One greedy answer as it comes: the evaluated way of generating, looked on token by token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.policy.chat import Decoding, generate, inner
from pipelines.policy.template import render
from pipelines.serving.openai_form import Answer

Told = Callable[[str], None]


class Gone(Exception):
    """Whoever asked has hung up; generating goes on for nobody."""


@dataclass(frozen=True)
class Slot:
    """A version that is ready to answer: its tokenizer, and how it was evaluated."""

    name: str
    adapter: str  # peft's name of it
    tokenizer: Any
    template: Mapping[str, Any]
    max_new_tokens: int
    fingerprint: str


class Pieces:
    """Turns tokens into pieces of text that add up to the text of them all.

    Only the last few tokens are decoded again for each; what ends within a character waits for its rest.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self._from, self._read = 0, 0

    def add(self, token: int) -> str:
        """The text that is certain with this token."""
        self.tokens.append(token)
        before = self._decoded(self.tokens[self._from : self._read])
        now = self._decoded(self.tokens[self._from :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._from, self._read = self._read, len(self.tokens)
        return now[len(before) :]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


class _Listener:
    """What transformers calls a streamer: it gets the prompt, then each token as it is chosen."""

    def __init__(self, pieces: Pieces, tell: Told, gone: Callable[[], bool]) -> None:
        self.pieces, self.tell, self.gone = pieces, tell, gone
        self.logits: Any = None
        self.logprobs: list[tuple[str, float]] = []
        self._began = False

    def see(self, module: Any, given: Any, output: Any) -> None:
        """The model's forward hook: the logits before any penalty."""
        self.logits = output.logits[0, -1].float()

    def put(self, tokens: Any) -> None:
        if not self._began:
            self._began = True
            return
        if self.gone():
            raise Gone
        token = int(tokens.reshape(-1)[0])
        logprob = float(self.logits[token] - self.logits.logsumexp(-1))
        self.logprobs.append((self.pieces.tokenizer.decode([token]), logprob))
        if piece := self.pieces.add(token):
            self.tell(piece)

    def end(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Overheard(Decoding):
    """The same decoding, with somebody who listens."""

    listener: Any = None

    def settings(self) -> dict[str, Any]:
        return {**Decoding.settings(self), "streamer": self.listener}


def prompt_of(slot: Slot, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
    """The prompt's tokens, as in training and evaluation."""
    return render(slot.tokenizer, [messages], [tools], slot.template, prompt=True)[0]


def answered(
    model: Any, slot: Slot, prompt: list[int], decoding: Decoding, tell: Told, gone: Callable[[], bool]
) -> Answer:
    """The greedy answer; `tell` gets its text piece by piece, of which the last ones may be cut by a stop string.

    Raises Gone as soon as `gone` says so.
    """
    listener = _Listener(Pieces(slot.tokenizer), tell, gone)
    hook = inner(model).register_forward_hook(listener.see)
    overheard = Overheard(decoding.max_new_tokens, stop=decoding.stop, listener=listener)
    try:
        found = generate(model, slot.tokenizer, [prompt], overheard, batch_size=1)[0]
    finally:
        hook.remove()
    logprobs = listener.logprobs[: found.num_tokens]
    return Answer(found.text, len(prompt), found.num_tokens, found.finished, logprobs)
