"""How many tokens a row is after the chat template, counted only where it could matter."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from pipelines.config.schema import Model
from pipelines.dataset.row import Row
from pipelines.errors import Unreachable
from pipelines.policy.base import load_template_tokenizer, local_folder, template_switches
from pipelines.policy.template import render, texts
from pipelines.product import digest_of, file_hash
from pipelines.progress import say

# What a template may add beside the texts in a way that depends on them (a trimmed or an escaped sign).
SLACK_BYTES = 16
SURE = 0.25  # of the limit: without a tokenizer, rows of fewer bytes are taken to fit
PLAIN = {"role", "content"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model", "vocab.json")


def tokenizer_digest(model: Model) -> str:
    """What names the tokenizer and its chat template: a Hub revision, or a hash of the local files."""
    folder = local_folder(model)
    if folder is None:
        return f"{model.id}@{model.revision}"
    files = [folder / name for name in TOKENIZER_FILES]
    return digest_of({path.name: file_hash(path) for path in files if path.is_file()})


class TokenLimit:
    """Finds rows of more than `tokens` tokens, and rows that the chat template refuses.

    A token is at least one byte of text, so a row whose bytes, with what the template writes around them, are within
    the limit needs no counting: a million short rows cost no tokeniser's time.
    """

    def __init__(self, model: Model, tokens: int) -> None:
        self.tokens = tokens
        self.num_unchecked = 0
        self._model = model
        self._template = template_switches(model)
        self._tokenizer: Any = None
        self._overheads: dict[tuple[str, ...], int] = {}
        self._reachable: bool | None = None

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer, loaded when it is first needed. Raises Unreachable where it can't be had."""
        if self._tokenizer is None:
            try:
                self._tokenizer = load_template_tokenizer(self._model)
            except OSError as error:
                raise Unreachable(
                    f"can't load the tokenizer of {self._model.id}: {str(error).splitlines()[0]}"
                ) from None
        return self._tokenizer

    def faults(self, rows: Sequence[Row]) -> list[str | None]:
        """For each row why the model can't take it: too long, or refused by the chat template; None for the others.

        Where the tokenizer can't be had, rows that would need it are counted as `num_unchecked`.
        """
        found: list[str | None] = [None] * len(rows)
        if not self._at_hand():
            self.num_unchecked += sum(_writes_more(row) or _written(row) > self.tokens * SURE for row in rows)
            return found
        for i, row in enumerate(rows):
            try:
                if self._bytes(row) > self.tokens and (count := self.counts([row])[0]) > self.tokens:
                    limit = f"prepare.max_length is {self.tokens:,}"
                    found[i] = f"is {count:,} tokens after the chat template, {limit}"
            except TemplateError as error:
                found[i] = f"the chat template of {self._model.name} refuses it: {error}"
        return found

    def counts(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row, prompt and completion."""
        ids = render(
            self.tokenizer,
            [[*row.prompt, *row.completion] for row in rows],
            [row.tools for row in rows],
            self._template,
            prompt=False,
        )
        return [len(row) for row in ids]

    def _at_hand(self) -> bool:
        """Whether the tokenizer can be had; asked once, and said once where it can't."""
        if self._reachable is None:
            try:
                self._reachable = self.tokenizer is not None
            except Unreachable as error:
                say(f"  lengths of long rows stay unchecked until training: {error}")
                self._reachable = False
        return self._reachable

    def _bytes(self, row: Row) -> int:
        """No fewer than the row has tokens. Raises TemplateError where the template takes no such turns."""
        return self.tokens + 1 if _writes_more(row) else _written(row) + self._around(row)

    def _around(self, row: Row) -> int:
        """Bytes that the template writes around the texts of such turns."""
        roles = tuple(message["role"] for message in (*row.prompt, *row.completion))
        if roles not in self._overheads:
            bare = [{"role": role, "content": "x"} for role in roles]
            text = texts(self.tokenizer, [bare], [None], self._template, prompt=False)[0]
            self._overheads[roles] = len(text.encode()) + SLACK_BYTES
        return self._overheads[roles]


def _writes_more(row: Row) -> bool:
    """Whether the template writes more of the row than its texts."""
    return bool(row.tools) or any(message.keys() - PLAIN for message in (*row.prompt, *row.completion))


def _written(row: Row) -> int:
    return sum(len((message.get("content") or "").encode()) for message in (*row.prompt, *row.completion))
