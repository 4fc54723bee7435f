"""A teacher's distributions over tokens that somebody else wrote, from a server.

vLLM's extension of OpenAI's completions: `prompt_logprobs` of POST {at}/completions, with token ids as the prompt.
"""

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import httpx2

from pipelines.errors import UserError
from pipelines.subjects import completion
from pipelines.subjects.background import drain
from pipelines.subjects.posting import Outcome, Posting, Server, mistake

PATH = "/completions"
SHOWN = 3  # of the places where two vocabularies differ

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Place:
    """The likeliest tokens at a place and the one that is there: ids and their natural log-probabilities."""

    ids: list[int]
    logp: list[float]
    texts: list[str | None]  # as the server writes each of them


class Read(NamedTuple):
    """A prompt, and of how many of its last tokens the distributions are wanted."""

    tokens: Tokens
    kept: int


class Distributions:
    """`top_k` tokens a place, `teacher.concurrency` prompts at once, with the server's retries, patience and account.

    Nothing is kept on the disk: what a student writes is new at every step.
    """

    def __init__(self, server: Server, top_k: int) -> None:
        self.server, self.top_k = server, top_k

    def score(self, prompts: Sequence[tuple[Tokens, int]]) -> list[list[Place]]:
        """The places of each prompt's last tokens, prompts being token ids and of how many.

        Raises Unreachable where the server stays away for longer than its patience, UserError where it refuses or
        tells something else.
        """
        asked = [number for number, (_, kept) in enumerate(prompts) if kept]
        outcomes = self.outcomes([Read(*prompts[number]) for number in asked])
        for outcome in outcomes:
            if outcome.kind == "limit":
                raise UserError(f"{self.server.field}.spending_limit: {outcome.error}")
            if outcome.kind != "answered":
                raise UserError(f"{self.server.field}.at: {self.server.at} tells no distributions: {outcome.error}")
        found: list[list[Place]] = [[] for _ in prompts]
        for number, outcome in zip(asked, outcomes, strict=True):
            found[number] = outcome.found
        return found

    def affords(self, prompts: int, tokens: int) -> bool:
        """Whether so many prompts of so many tokens are within what is left of the spending limit."""
        spending = self.server.spending
        return spending.limit is None or spending.spent + prompts * self.worst(tokens) <= spending.limit

    def outcomes(self, prompts: Sequence[Read], insists: bool = True) -> list[Outcome]:
        """How the request for each prompt ended; `found` are its places."""
        width = min(self.server.fields.concurrency, max(len(prompts), 1))

        async def work(put: Callable[[tuple[int, Outcome]], None]) -> None:
            turn = iter(enumerate(prompts))
            async with self.server.client(width) as client:
                scoring = _Scoring(self, client)

                async def worker() -> None:
                    for number, prompt in turn:
                        put((number, await scoring.places(prompt, str(number), insists)))

                await asyncio.gather(*[worker() for _ in range(width)])

        found: dict[int, Outcome] = {}

        def take(item: tuple[int, Outcome]) -> None:
            found[item[0]] = item[1]

        drain(work, take)
        return [found[number] for number in range(len(prompts))]

    def check_context(self, tokens: int) -> None:
        """Raises UserError where the server reads no prompt of `tokens` tokens with one more behind it."""
        (outcome,) = Distributions(self.server, 1).outcomes([Read([0] * (tokens - 1), 1)])
        if outcome.status in (400, 413, 422):
            raise UserError(
                f"{self.server.field}.at: {self.server.at} doesn't read the {tokens - 1} tokens of prompt and answer "
                f"({outcome.error}); lower distill.trainer.max_completion_length, drop long rows with "
                "prepare.max_length, or start the server with a longer context (vLLM's --max-model-len)"
            )
        if outcome.kind != "answered":
            raise mistake(self.server, outcome, PATH[1:])

    def worst(self, tokens: int) -> float:
        """US dollars that a prompt of so many tokens costs at most."""
        return self.server.spending.cost(tokens, 1) or 0.0

    def tokenized(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool, template: Mapping[str, Any]
    ) -> list[int] | None:
        """The tokens that the server makes of a conversation; None where it has no /tokenize or takes no such one."""
        body = {
            "model": self.server.model,
            "messages": list(messages),
            "add_generation_prompt": prompt,
            "chat_template_kwargs": dict(template),
        }
        found: list[httpx2.Response] = []

        async def work(put: Callable[[httpx2.Response], None]) -> None:
            async with self.server.client(1) as client, asyncio.timeout(self.server.fields.timeout_s):
                put(await client.post(self.server.root_url("/tokenize"), content=json.dumps(body).encode()))

        try:
            drain(work, found.append)
            tokens = found[0].json()["tokens"] if found[0].is_success else None
        except (TimeoutError, httpx2.TransportError, ValueError, KeyError, TypeError):
            return None  # an extra: whatever another server answers there, it isn't this
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


class _Scoring(Posting):
    """Requests for the distributions over prompts, over one client."""

    kept = "training goes on from its last checkpoint"

    def __init__(self, of: Distributions, client: httpx2.AsyncClient) -> None:
        super().__init__(of.server, client, PATH)
        self.of = of

    async def places(self, prompt: Read, chance: str, insists: bool) -> Outcome:
        """The prompt's places, its retries included."""
        outcome = await self.tries(self._body(prompt.tokens), chance, insists)
        if outcome.kind != "answered":
            return outcome
        try:
            return replace(outcome, found=places(outcome.found, prompt))
        except completion.Garbled as error:
            return replace(outcome, kind="garbled", reason=str(error), found=None)

    def worst(self, body: Mapping[str, Any]) -> float:
        return self.of.worst(len(body["prompt"]))

    async def look(self) -> Outcome:
        # Whatever it answers, it is there.
        return await self.paid(self._body([0]))

    def read(self, content: bytes, latency_s: float, worst: float) -> tuple[Outcome, float]:
        try:
            payload = json.loads(content)
            told = payload["choices"][0].get("prompt_logprobs")
            cost = self.server.spending.cost(*completion.usage(payload))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            shown = completion.brief(content[:400].decode("utf-8", "replace"))
            return Outcome("garbled", f"no completion: {shown or 'an empty reply'}"), worst
        charged = worst if cost is None else cost
        if not isinstance(told, list):
            return Outcome("wordless", "no prompt_logprobs"), charged
        return Outcome("answered", found=told, latency_s=latency_s), charged

    def _body(self, tokens: Tokens) -> dict[str, Any]:
        return {
            "model": self.server.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self.of.top_k,
            "stream": False,
        }


def places(told: Sequence[Any], prompt: Read) -> list[Place]:
    """The places of a prompt's last tokens, of what the server told. Raises Garbled where it's something else."""
    if len(told) != len(prompt.tokens):
        raise completion.Garbled(f"prompt_logprobs of {len(told)} tokens for a prompt of {len(prompt.tokens)}")
    begin = len(told) - prompt.kept
    return [_place(told[at], prompt.tokens[at], at) for at in range(begin, len(told))]


def _place(told: Any, there: int, at: int) -> Place:
    """One place, its likeliest token first."""
    if not isinstance(told, dict) or str(there) not in told:
        raise completion.Garbled(f"prompt_logprobs without token {there}, which is at place {at}")
    try:
        pairs = [(int(token), float(one["logprob"]), one.get("decoded_token")) for token, one in told.items()]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise completion.Garbled(f"prompt_logprobs at place {at} are no log-probabilities by token id") from None
    if any(math.isnan(logp) or logp > 0.001 for _, logp, _ in pairs):
        raise completion.Garbled(f"prompt_logprobs at place {at} are no log-probabilities")
    pairs.sort(key=lambda pair: -pair[1])
    return Place(*(list(part) for part in zip(*pairs, strict=True)))


# --- before training ------------------------------------------------------------------------------


def check(distributions: Distributions, tokenizer: Any, probe: Tokens) -> None:
    """Asks about `probe`, token ids of the student's.

    Raises Unreachable where nothing answers, UserError where what answers gives no distributions, too few tokens of
    them, or means something else by a token than the student's `tokenizer` does.
    """
    server, top_k = distributions.server, distributions.top_k
    (outcome,) = distributions.outcomes([Read(probe, len(probe) - 1)], insists=False)
    at, field = server.at, server.field
    if outcome.status in (400, 422):
        if "logprobs" in outcome.reason:
            raise UserError(
                f"distill.top_k: {at} refuses {top_k} tokens a place ({outcome.error}); start it with "
                f"--max-logprobs {top_k} (vLLM's option) or more, or lower distill.top_k"
            )
        raise UserError(f"{field}.at: {at} refuses token ids of the student's vocabulary: {outcome.error}")
    if outcome.kind == "wordless":
        raise UserError(
            f"{field}.at: {at} gives no prompt_logprobs, by which a teacher tells its distributions; serve it with "
            "vLLM, or let it write answers with generate and use distillation=sequence"
        )
    if outcome.kind != "answered":
        raise mistake(server, outcome, PATH[1:])
    fewest = min(len(place.ids) for place in outcome.found)
    if fewest < min(top_k, len(tokenizer)):
        raise UserError(
            f"distill.top_k: asked for {top_k} tokens a place, {at} gives {fewest}; start it with --max-logprobs "
            f"{top_k} (vLLM's option) or more, or lower distill.top_k"
        )
    if difference := vocabulary_difference(tokenizer, outcome.found):
        raise UserError(
            f"{field}.at: distillation by a server needs one vocabulary, and the teacher's differs: {difference}; let "
            "it write answers with generate and use distillation=sequence"
        )


def vocabulary_difference(tokenizer: Any, found: Sequence[Place]) -> str | None:
    """Tokens that the server writes in another way than the student, in words; None where it writes none so.

    Bytes that are no text by themselves, and tokens behind the student's, aren't compared.
    """
    texts = {token: text for place in found for token, text in zip(place.ids, place.texts, strict=True) if text}
    told = []
    for token in sorted(texts):
        if token >= len(tokenizer):
            continue
        ours = tokenizer.decode([token])
        known = (ours, ours.strip(), tokenizer.convert_ids_to_tokens(token))
        if "\ufffd" not in ours + texts[token] and texts[token] not in known and texts[token].strip() != ours.strip():
            told.append(f"token {token} is {ours!r} for the student, {texts[token]!r} for the teacher")
    if not told:
        return None
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
