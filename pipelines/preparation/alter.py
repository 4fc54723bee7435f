"""What changes a row or leaves it out by itself: redaction, and the filters of length and language."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, Any

from pipelines.config.schema import Filters, Prepare
from pipelines.dataset.context import block, parted
from pipelines.dataset.language import Languages
from pipelines.dataset.redact import Redactor
from pipelines.dataset.row import Message, Row, question, text_of

# Filter -> the text it measures, and whether more than its bound is too much.
BOUNDS = {
    "min_prompt_chars": ("prompt", False),
    "max_prompt_chars": ("prompt", True),
    "min_completion_chars": ("completion", False),
    "max_completion_chars": ("completion", True),
}
SPOKEN = ("content", "reasoning_content", "tool_calls")  # what a message holds of its speaker


class Alter:
    """Redacts rows and filters them, counting by kind and listing what is left out, redacted, in `removed`."""

    def __init__(
        self,
        prepare: Prepare,
        filtered: Counter[str],
        redacted: Counter[str],
        languages: Counter[str],
        removed: IO[str],
    ) -> None:
        filters = prepare.filters
        self.filters, self.filtered, self.redacted, self.found = filters, filtered, redacted, languages
        self.removed = removed
        self.redactor = Redactor(prepare.redact.kinds, prepare.redact.phone_regions) if prepare.redact.kinds else None
        self.languages = Languages(filters.languages, filters.language_confidence) if filters.languages else None
        self._bounded = any(getattr(filters, name) is not None for name in BOUNDS)

    def row(self, row: Row, filtered: bool = True) -> Row | None:
        """The row as it goes on; None where a filter leaves it out, unless it is not to be `filtered`."""
        row = self._redacted(row) if self.redactor is not None else row
        if filtered and (reason := self._reason(row)):
            name, said = reason
            self.filtered[name] += 1
            listed = {"id": row.id, "source": row.source, "reason": said, "text": question(row.prompt)}
            self.removed.write(json.dumps(listed, ensure_ascii=False) + "\n")
            return None
        return row

    def hidden(self, value: Any, count: bool = False) -> Any:
        """A value with all texts in it redacted: a record for the quarantine, a call's arguments."""
        if isinstance(value, str):
            return self._text(value, count) if self.redactor is not None else value
        if isinstance(value, Mapping):
            return {name: self.hidden(item, count) for name, item in value.items()}
        return [self.hidden(item, count) for item in value] if isinstance(value, list) else value

    def _reason(self, row: Row) -> tuple[str, str] | None:
        if self._bounded and (name := _outside(self.filters, row)):
            return name, f"filters.{name}: {getattr(self.filters, name)}"
        if self.languages is not None and (language := self.languages.foreign(question(row.prompt))):
            self.found[language] += 1
            return "languages", f"filters.languages: {language}"
        return None

    def _redacted(self, row: Row) -> Row:
        context = None if row.context is None else self.hidden(row.context)
        return replace(
            row,
            prompt=[self._shown(row.context, context, message) for message in row.prompt],
            completion=list(self._messages(row.completion)),
            rejected=None if row.rejected is None else list(self._messages(row.rejected)),
            answer=self._text(row.answer, count=False),
            accepted=None if row.accepted is None else self.hidden(row.accepted, count=True),
            context=context,
            kept=None if row.kept is None else self.hidden(row.kept, count=True),
        )

    def _shown(self, before: list[str] | None, after: list[str] | None, message: Message) -> Message:
        """A message of the prompt; passages in it read as those of the row's context."""
        shown, rest = parted(text_of(message), before)
        if not shown or not after:
            return next(self._messages([message]))
        self.hidden(before, count=True)
        (changed,) = self._messages([{**message, "content": rest}])
        return {**changed, "content": block(after) + text_of(changed)}

    def _messages(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            found = {name: self.hidden(message[name], count=True) for name in SPOKEN if message.get(name)}
            yield {**message, **found}

    def _text(self, text: str, count: bool) -> str:
        assert self.redactor is not None
        changed, counts = self.redactor.redact(text)
        if count:
            self.redacted.update(counts)
        return changed


def _outside(filters: Filters, row: Row) -> str | None:
    """The first bound that the row's texts break."""
    sizes = {"prompt": len(question(row.prompt)), "completion": sum(len(text_of(m)) for m in row.completion)}
    for name, (side, above) in BOUNDS.items():
        bound = getattr(filters, name)
        if bound is not None and (sizes[side] > bound if above else sizes[side] < bound):
            return name
    return None
