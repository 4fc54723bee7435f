"""Rows -> tokens and labels, and the audit of what will be trained before the first step."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import Row
from pipelines.errors import DataError, UserError
from pipelines.policy.pieces import Encoded, PieceTokenizer
from pipelines.policy.template import ROWS_AT_ONCE, Ranges, marked_texts, texts

IGNORED = -100
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
SHOWN_IDS = 20


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the trainer sees it; `labels` is IGNORED where nothing is learned."""

    row_id: str
    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    prompt_is_prefix: bool
    prompt_answers: bool = False  # the prompt holds answers of the assistant, which `assistant` learns as well


def encode(tokenizer: Any, rows: Sequence[Row], template: Mapping[str, Any], loss: str) -> list[Example]:
    """Tokens and labels of every row.

    `loss` is "completion" (all that follows the prompt is learned) or "assistant" (what the chat template marks
    with `{% generation %}`). Raises UserError where the template has no such marks, DataError with the row where
    the template refuses its messages.
    """
    from jinja2 import TemplateError

    pieces = PieceTokenizer(tokenizer)
    if loss == "assistant":
        _check_marks(pieces, rows)
    examples: list[Example] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        try:
            examples += _encode(pieces, batch, template, loss)
        except TemplateError as error:
            raise _refused(tokenizer, batch, template) or error from None
    return examples


def _check_marks(pieces: PieceTokenizer, rows: Sequence[Row]) -> None:
    for tools in (None, next((row.tools for row in rows if row.tools), None)):
        if not MARK.search(pieces.tokenizer.get_chat_template(None, tools)):
            raise UserError("sft.loss: assistant needs a chat template with {% generation %} marks; use completion")
    if not pieces.tokenizer.is_fast:
        raise UserError("sft.loss: assistant needs a tokenizer that tells where tokens lie; use completion")


def _encode(pieces: PieceTokenizer, rows: Sequence[Row], template: Mapping[str, Any], loss: str) -> list[Example]:
    tokenizer, tools = pieces.tokenizer, [row.tools for row in rows]
    conversations = [[*row.prompt, *row.completion] for row in rows]
    ranges: list[Ranges | None] = [None] * len(rows)
    if loss == "assistant":
        marked = marked_texts(tokenizer, conversations, tools, template)
        wholes, ranges = [text for text, _ in marked], [found for _, found in marked]
    else:
        wholes = texts(tokenizer, conversations, tools, template, prompt=False)
    prompts = texts(tokenizer, [row.prompt for row in rows], tools, template, prompt=True)
    return [_example(pieces, *parts) for parts in zip(rows, prompts, wholes, ranges, strict=True)]


def _example(pieces: PieceTokenizer, row: Row, prompt: str, text: str, generated: Ranges | None) -> Example:
    whole = pieces.encode(text)
    shared, tail = pieces.tail(prompt, text, whole)
    same = _common_prefix(tail, whole.ids[shared : shared + len(tail)])
    start = shared + same
    learned = [(start, len(whole.ids))] if generated is None else _learned(whole, generated)
    labels = [IGNORED] * len(whole.ids)
    for first, end in learned:
        labels[first:end] = whole.ids[first:end]
    answers = generated is not None and any(message["role"] == "assistant" for message in row.prompt)
    return Example(row.id, whole.ids, labels, start, same == len(tail), answers)


def _learned(whole: Encoded, generated: Ranges) -> Ranges:
    """Ranges of tokens for ranges of characters, as transformers' `return_assistant_tokens_mask` has them."""
    found: Ranges = []
    for start, end in generated:
        if not end:  # an empty turn that opens the text, where transformers fails
            continue
        first, last = whole.token_at(start), whole.token_at(end - 1)
        if first is None:
            break
        found.append((first, last + 1 if last else len(whole.ids)))
    return found


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _refused(tokenizer: Any, rows: Sequence[Row], template: Mapping[str, Any]) -> DataError | None:
    """The first row of a batch that the template refuses, and what it says."""
    from jinja2 import TemplateError

    for row in rows:
        try:
            texts(tokenizer, [row.prompt], [row.tools], template, prompt=True)
            texts(tokenizer, [[*row.prompt, *row.completion]], [row.tools], template, prompt=False)
        except TemplateError as error:
            return DataError(f"{row.source}: row {row.id}: the model's chat template refuses it: {error}")
    return None


@dataclass(frozen=True)
class Audit:
    """What the mask does to all rows; each list holds row ids."""

    num_rows: int
    num_tokens: int
    num_trained: int
    nothing_trained: list[str]
    end_untrained: list[str]
    prompt_trained: list[str]
    prompt_changed: list[str]
    truncated: list[str]
    lengths: list[int]

    def problems(self, max_truncated: int, stage: str = "sft") -> list[str]:
        """Why the run must not start, one line a kind; `stage` is whose settings are named."""
        kinds = {
            "rows where no token is trained": self.nothing_trained,
            "rows whose end of turn is not trained: the model would not learn to stop": self.end_untrained,
            "rows where a token of the prompt is trained": self.prompt_trained,
            "rows whose prompt the template renders otherwise once the answer follows": self.prompt_changed,
        }
        found = [f"{len(ids)} {kind}: {_some(ids)}" for kind, ids in kinds.items() if ids]
        if len(self.truncated) > max_truncated:
            found.append(
                f"{len(self.truncated)} rows whose answer {stage}.trainer.max_length cuts, "
                f"{'sft.audit.max_truncated_answers' if stage == 'sft' else stage} allows {max_truncated}: "
                f"{_some(self.truncated)}"
            )
        return found

    def counts(self) -> dict[str, float]:
        """The audit as metrics."""
        return {
            "audit/num_rows": self.num_rows,
            "audit/num_tokens": self.num_tokens,
            "audit/trained_share": self.num_trained / max(self.num_tokens, 1),
            "audit/num_truncated": len(self.truncated),
        }


def audit(examples: Sequence[Example], max_length: int | None, ends: Sequence[int]) -> Audit:
    """Checks every row's mask as it will be after truncation to `max_length` tokens."""
    cut = [example.labels[:max_length] for example in examples]
    pairs = list(zip(examples, cut, strict=True))
    learned = [sum(label != IGNORED for label in labels) for labels in cut]
    return Audit(
        num_rows=len(examples),
        num_tokens=sum(len(labels) for labels in cut),
        num_trained=sum(learned),
        nothing_trained=[e.row_id for (e, _), count in zip(pairs, learned, strict=True) if not count],
        end_untrained=[e.row_id for e in examples if not set(ends) & set(e.labels)],
        prompt_trained=[e.row_id for e, labels in pairs if not e.prompt_answers and _prompt_learned(e, labels)],
        prompt_changed=[e.row_id for e in examples if not e.prompt_is_prefix],
        truncated=[e.row_id for e, labels in pairs if len(labels) < len(e.labels) and any_learned_cut(e, labels)],
        lengths=[len(e.input_ids) for e in examples],
    )


def _prompt_learned(example: Example, labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels[: example.prompt_length])


def any_learned_cut(example: Example, labels: Sequence[int]) -> bool:
    """Whether truncation took a token that would have been learned."""
    return any(label != IGNORED for label in example.labels[len(labels) :])


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more


def examples_page(tokenizer: Any, examples: Sequence[Example], count: int) -> str:
    """HTML that shows the first rows token by token, what is learned marked."""
    shown = examples_html(tokenizer, examples[:count])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Loss mask</title>"
        "<meta name=viewport content='width=device-width'><style>"
        "body{font:16px/1.7 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{white-space:pre-wrap;word-break:break-word;background:#f6f6f6;padding:1rem}"
        "span{border-bottom:1px dotted #bbb}mark{background:#bfe8c5;border-bottom:1px dotted #7a7}</style>"
        "<h1>Loss mask</h1><p>Marked tokens are trained; the others are read only. A dotted line under each token "
        f"shows where it ends. {min(count, len(examples))} of {len(examples)} rows.</p>{shown}"
    )


def examples_html(tokenizer: Any, examples: Sequence[Example]) -> str:
    """The rows token by token, what is learned in `mark`: a part of a page."""
    return "".join(_example_html(tokenizer, example) for example in examples)


def _example_html(tokenizer: Any, example: Example) -> str:
    pieces = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        tag = "span" if label == IGNORED else "mark"
        text = html.escape(tokenizer.decode([token]).replace("\n", "⏎\n"))
        pieces.append(f"<{tag} title='{token}'>{text}</{tag}>")
    trained = sum(label != IGNORED for label in example.labels)
    head = f"row {html.escape(example.row_id)}: {trained} of {len(example.labels)} tokens trained"
    return f"<h2 style='font-size:1rem'>{head}</h2><pre>{''.join(pieces)}</pre>"
