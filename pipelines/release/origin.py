"""Whether an evaluation is fresh, and of the very files; and what exports lost."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from pipelines.config.gating import Loss
from pipelines.release.evidence import Evidence
from pipelines.release.ruling import Ruling, is_usable

CLOCKS_DIFFER_DAYS = 0.05  # about an hour, between machines


def age_ruling(max_days: float, version: Evidence) -> Ruling:
    """By `evaluated.at` (UTC, ISO 8601); an evaluation from the future or without a date fails."""
    days = _age_days(version.tags.get("evaluated.at"))
    passed = days is not None and -CLOCKS_DIFFER_DAYS <= days <= max_days
    reason = "rows, base and law move on; an old evaluation is of another world"
    return Ruling("fresh", "age of the evaluation, days", f"<= {max_days:g}", days, passed, reason)


def own_files_ruling(version: Evidence) -> Ruling:
    """The adapter's files are those evaluated; base and template are those of the version's own papers."""
    wrong = [name for name, (one, other) in _pairs(version).items() if one and other and one != other]
    missing = [name for name, (one, other) in _pairs(version).items() if not one or not other]
    found = f"other {', '.join(wrong)}" if wrong else f"unknown {', '.join(missing)}" if missing else "the same"
    reason = "scores of other files say nothing about these"
    return Ruling("own_files", "what was evaluated", "the same", found, found == "the same", reason)


def export_rulings(asked: Mapping[str, Loss], version: Evidence) -> list[Ruling]:
    """Each form must have been judged again, and lose at most so much of the accuracy."""
    accuracy = version.metrics.get("eval/correctness/accuracy")
    rulings: list[Ruling] = []
    for form, loss in asked.items():
        of_form = _accuracy(version.tags.get(f"export.{form}"))
        lost = None if of_form is None or accuracy is None else accuracy - of_form
        passed = lost is not None and is_usable(lost) and lost <= loss.max_loss
        rulings.append(Ruling(f"export_{form}", "accuracy lost", f"<= {loss.max_loss:g}", lost, passed, loss.reason))
    return rulings


def _pairs(version: Evidence) -> dict[str, tuple[str | None, str | None]]:
    """What must be the same in two places."""
    tags, papers = version.tags, version.lineage or {}
    pairs = {
        "adapter": (version.adapter, version.evaluated.get("adapter")),
        "adapter in the tags": (version.adapter, tags.get("adapter.digest")),
        "base": (tags.get("base.revision"), version.evaluated.get("revision")),
    }
    if papers:
        pairs["base in the lineage"] = (tags.get("base.revision"), _text((papers.get("base") or {}).get("revision")))
        pairs["adapter in the lineage"] = (version.adapter, _text((papers.get("adapter") or {}).get("digest")))
        pairs["template"] = (tags.get("template.digest"), _digest(papers.get("template")))
    return pairs


def _digest(told: object) -> str | None:
    return _text(told.get("digest")) if isinstance(told, Mapping) else _text(told)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _age_days(at: str | None) -> float | None:
    try:
        then = datetime.fromisoformat(at or "")
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds() / 86400


def _accuracy(told: str | None) -> float | None:
    """Of a form, from its tag; None where it wasn't judged."""
    try:
        return float(json.loads(told or "")["accuracy"])
    except (ValueError, KeyError, TypeError):
        return None
