"""Ten rows whose scores can be counted by hand: eight in scope (labels a, b, c), two out of scope."""

import pytest

from pipelines.dataset.row import Row
from pipelines.evaluation.answer import Answer

DECLINE = "out_of_scope"
LABELS = ["a", "a", "a", "a", "b", "b", "b", "c", DECLINE, DECLINE]
BASE_READ: list[str | None] = ["a", "b", None, DECLINE, "a", "a", "b", None, "a", DECLINE]
ADAPTER_READ: list[str | None] = ["a", "a", "a", "b", "b", "b", "a", "c", DECLINE, DECLINE]

Labelled = tuple[list[Row], dict[str, list[Answer]]]


def make_row(position: int, label: str) -> Row:
    prompt = [{"role": "system", "content": "Classify."}, {"role": "user", "content": f"query {position}"}]
    completion = [{"role": "assistant", "content": label}]
    return Row(f"r{position}", "demo", prompt, completion, label, label, f"demo.csv:{position + 2}", f"g{position}")


def make_answer(row: Row, read: str | None) -> Answer:
    """An answer that says `read`, or mumbles without end where it is None; tokens are counted by letters."""
    text = "I can't tell" if read is None else read
    return Answer(row.id, text, read == row.answer, read, len(text), read is not None)


@pytest.fixture(scope="session")
def labelled() -> Labelled:
    rows = [make_row(position, label) for position, label in enumerate(LABELS)]
    read = {"base": BASE_READ, "adapter": ADAPTER_READ}
    return rows, {
        subject: [make_answer(row, label) for row, label in zip(rows, labels, strict=True)]
        for subject, labels in read.items()
    }
