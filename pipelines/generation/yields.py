"""What came of asking a teacher, in numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.generation.keeping import KEPT, REASONS, UNASKED, Sifted
from pipelines.generation.written import Made


def counted(sifted: Sequence[Sifted], made: Made) -> dict[str, Any]:
    """Tries by what became of them (`failures`), rows, tokens and dollars; None where a number isn't known.

    `yield` is the share of the tries that were asked that are kept. `cost` is what the tries' own replies say;
    `spent` of an account, with retries and probes, is told beside.
    """
    reasons = Counter(one.reason for one in sifted)
    asked = [one for one in sifted if one.reason != UNASKED]
    attempts = [one.attempt for one in asked]
    kept = reasons[KEPT]
    return {
        "num_tries": len(sifted),
        "num_asked": len(asked),
        "num_kept": kept,
        "num_right": sum(one.verdict is True for one in asked)
        if any(one.verdict is not None for one in asked)
        else None,
        "yield": kept / len(asked) if asked else None,
        "failures": {name: reasons[name] for name in REASONS if reasons[name]},
        "num_cached": sum(one.cached for one in attempts),
        "prompt_tokens": _sum([one.prompt_tokens for one in attempts]),
        "num_tokens": _sum([one.num_tokens for one in attempts]),
        "num_turns": sum(one.num_turns for one in attempts),
        "num_calls": sum(one.num_calls for one in attempts),
        "num_failed_calls": sum(one.num_failed for one in attempts),
        "num_rows": len(made.rows),
        "rows": {
            "taught": made.num_taught,
            "own": made.num_own,
            "missing": made.num_missing,
            "unasked": made.num_unasked,
        },
    }


def _sum(values: Sequence[int | None]) -> int | None:
    """Over what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def costs(counts: Mapping[str, Any], spent: float | None, seconds: float) -> dict[str, Any]:
    """Dollars and seconds, in all and for each answer that is kept; None where nothing is, or nothing is paid."""
    kept = counts["num_kept"]
    return {
        "cost": spent,
        "cost_per_kept": spent / kept if spent is not None and kept else None,
        "seconds": seconds,
        "seconds_per_kept": seconds / kept if kept else None,
    }


def metrics(counts: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among them, by the names that a run logs."""
    flat = {name: value for name, value in counts.items() if isinstance(value, int | float)}
    flat |= {f"rows/{name}": value for name, value in counts["rows"].items()}
    flat |= {f"failures/{name}": value for name, value in counts["failures"].items()}
    return {f"generate/{name}": float(value) for name, value in flat.items()}
