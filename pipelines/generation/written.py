"""What generate writes: rows, where each comes from, and the answers that are no rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.generation.attempt import Attempt, spoken
from pipelines.generation.keeping import KEPT, UNASKED, Sifted
from pipelines.product import digest_of
from pipelines.tasks.rows import Maker, short_hash

PROVENANCE, REJECTED = "provenance.jsonl", "rejected.jsonl"
SHOWN = 200  # characters of a rejected answer
TEACHERS, OWN = "teacher", "own"


@dataclass(frozen=True)
class Author:
    """Who wrote the answers, and how: `digest` is the teacher's content, or where it is asked, in one word."""

    name: str
    digest: str
    temperature: float | None

    @classmethod
    def of(cls, record: Mapping[str, Any], temperature: float | None) -> "Author":
        """From what a teacher says of itself."""
        told = {name: record[name] for name in record if name not in ("license", "reported model")}
        kind, digest = record["kind"], str(record.get("digest") or digest_of(told))
        if kind == "endpoint":
            name = f"{record['model']} at {record['endpoint']}"
        else:
            name = str(record.get("version") or f"{kind} {digest.removeprefix('sha256:')[:12]}")
        return cls(f"teacher {name}", digest, temperature)


@dataclass(frozen=True)
class Made:
    """The rows sorted by id, a record of where each comes from, and of the rows that were asked: `num_own` rows have
    their own completion, `num_missing` are left out for want of one, `num_unasked` because none of their tries was
    asked, `num_taught` have an answer of the teacher's.
    """

    rows: list[Row]
    provenance: list[dict[str, Any]]
    num_taught: int
    num_own: int
    num_missing: int
    num_unasked: int


def make(task: Task, rows: Sequence[Row], sifted: Sequence[Sifted], missing: str, author: Author) -> Made:
    """Rows of what was kept, and, with `missing` own, of rows that have nothing else, as they were."""
    maker = Maker(task)
    by_row: dict[str, list[Sifted]] = {row.id: [] for row in rows}
    for one in sifted:
        by_row[one.attempt.row].append(one)
    found: list[tuple[Row, dict[str, Any]]] = []
    counts = dict.fromkeys(("taught", "own", "missing", "unasked"), 0)
    for row in rows:
        tries = by_row[row.id]
        if kept := [one for one in tries if one.reason == KEPT]:
            counts["taught"] += 1
            found += [_taught(maker, row, one, author) for one in kept]
        elif tries and all(one.reason == UNASKED for one in tries):
            counts["unasked"] += 1
        elif missing == OWN and row.completion:
            counts["own"] += 1
            found.append((row, _told(row, row, author)))
        else:
            counts["missing"] += 1
    found.sort(key=lambda pair: pair[0].id)  # any first n are a random sample
    return Made([row for row, _ in found], [told for _, told in found], *(counts[name] for name in counts))


def as_they_are(rows: Sequence[Row], author: Author) -> Made:
    """The rows with their own completions, where a teacher only tells its distributions."""
    kept = sorted((row for row in rows if row.completion), key=lambda row: row.id)
    told = [_told(row, row, author) for row in kept]
    return Made(kept, told, 0, len(kept), len(rows) - len(kept), 0)


def _taught(maker: Maker, row: Row, one: Sifted, author: Author) -> tuple[Row, dict[str, Any]]:
    attempt = one.attempt
    source = f"{author.name}:{row.id}.{attempt.number}"
    taught = replace(row, completion=attempt.completion(row), source=source, rejected=None)
    # Rows that differ in their answers alone may share a prompt: each has an id of its own.
    taught = replace(taught, id=short_hash(json.dumps([maker.numbered(taught, 0), row.id])))
    return taught, _told(taught, row, author) | {
        "by": TEACHERS,
        "try": attempt.number,
        "seed": attempt.seed,
        "temperature": author.temperature,
        "prompt_tokens": attempt.prompt_tokens,
        "num_tokens": attempt.num_tokens,
        "cost": attempt.cost,
        "cached": attempt.cached,
        "verdict": one.verdict,
        "judge": one.judge,
    }


def _told(row: Row, of: Row, author: Author) -> dict[str, Any]:
    names = ("try", "seed", "temperature", "prompt_tokens", "num_tokens", "cost", "cached", "verdict", "judge")
    told = {"id": row.id, "row": of.id, "source": of.source, "by": OWN, "author": author.name}
    told |= {"teacher": author.digest}
    return told | dict.fromkeys(names)


def rejected(sifted: Sequence[Sifted], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The answers that are no rows, with the reason and how they begin; tries that weren't asked are none."""
    return [
        {
            "row": one.attempt.row,
            "try": one.attempt.number,
            "reason": one.reason,
            "detail": one.detail[:SHOWN],
            "begins": shown(one.attempt, rows[one.attempt.row])[:SHOWN],
        }
        for one in sifted
        if one.reason not in (KEPT, UNASKED)
    ]


def shown(attempt: Attempt, row: Row) -> str:
    """The answer as people read it."""
    return spoken(attempt.completion(row))


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line, UTF-8, sorted keys."""
    lines = (f"{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n" for record in records)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    return path
