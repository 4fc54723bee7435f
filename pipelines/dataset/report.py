"""What prepare did, as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.dataset import pictures
from pipelines.dataset.pictures import Lengths
from pipelines.interval import wilson
from pipelines.page import environment, sources

PERCENTILES = (5, 50, 95, 99)
SPLITS = ("train", "validation", "heldout")
# Of tables that could hold a line for every row; the files beside the page have all of them.
MOST_LABELS = 200
MOST_REMOVED = 30
MOST_EXAMPLES = 10
UNKNOWN = "unknown"

POLICIES = {
    "remove": "These rows were removed.",
    "fail": "Had there been one, prepare would have ended without rows.",
    "record": "They are only counted here: the rows are still in the splits.",
}
HELDOUT = {
    "sources": "the sources whose split is heldout",
    "hash": "a seeded hash of each row's group, so that a row keeps its side whatever is added",
    "stratified": "a seeded share of each label",
    "time": "the newest rows by their time",
    "fixed": "exactly the held-out rows of an earlier prepare, copied",
    "matched": "a seeded sample with the asked share of each label",
}


def html_report(
    summary: Mapping[str, Any], lengths: Lengths, examples: str, removed: Sequence[Mapping[str, Any]]
) -> str:
    """The page's text: no script and no external resource, all strings escaped but `examples`, which is HTML.

    `summary` is what summary.json holds; a part that it lacks is a section that the page lacks. `removed` is a
    sample of the lines of removed.jsonl. The same arguments give the same bytes.
    """
    templates = environment(Path(__file__).parent)
    templates.filters["short"] = _short
    splits = _splits(summary)
    return templates.get_template("report.html.jinja").render(
        summary=summary,
        splits=splits,
        notices=notices(summary),
        pictures=sources(_draw(summary, lengths)),
        labels=_labels(splits),
        num_labels=max((about.get("num_labels", 0) for about in splits.values()), default=0),
        asked=_asked(summary.get("config", {})),
        lengths=lengths,
        spread=_spread(lengths),
        bounds=["shortest", *("median" if p == 50 else f"{p} %" for p in PERCENTILES), "longest"],
        contamination=_contamination(summary.get("contamination")),
        shares=_shares(summary.get("heldout", {})),
        heldout_methods=HELDOUT,
        examples=Markup(examples),
        removed=removed[:MOST_REMOVED],
        num_removed_more=max(len(removed) - MOST_REMOVED, 0),
        most_examples=MOST_EXAMPLES,
        unknown=UNKNOWN,
    )


def notices(summary: Mapping[str, Any]) -> list[str]:
    """What a reader should look into before training on the rows, a sentence each; the most serious first."""
    splits, sources = _splits(summary), summary.get("sources", {})
    found = [f"No row is left for {split}." for split, about in splits.items() if not about["num_rows"]]
    found += _accounting(summary, splits)
    found += _still_in(summary.get("contamination"))
    if conflicts := summary.get("duplicates", {}).get("conflicts"):
        found.append(f"Prompts that have rows with different answers: {conflicts:,}; training learns them all.")
    if quarantined := summary.get("quarantine", {}).get("num_records"):
        found.append(f"Defective records put aside in quarantine.jsonl: {quarantined:,}.")
    if unlicensed := [name for name, source in sources.items() if source.get("license", UNKNOWN) == UNKNOWN]:
        found.append(f"The licence is unknown of {', '.join(unlicensed)}.")
    return found


def _still_in(contamination: Mapping[str, Any] | None) -> list[str]:
    """What the policy record leaves in the splits."""
    if contamination is None or contamination["policy"] != "record":
        return []
    decisive = str(contamination["decisive"])
    return [
        f"Rows for training or validation have text of {name} and are still in: the contamination policy is record."
        for name, about in contamination["against"].items()
        if about["ngrams"].get(decisive) or about["near"] or about["equal"]
    ]


def _accounting(summary: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """Rows that the funnel can't explain; fixed held-out rows are copied and don't come from the records."""
    funnel = summary.get("funnel")
    copied = summary.get("heldout", {}).get("method") == "fixed"
    total = sum(about["num_rows"] for split, about in splits.items() if not (copied and split == "heldout"))
    if not funnel or funnel[-1]["rows"] == total:
        return []
    return [
        f"The last step leaves {funnel[-1]['rows']:,} rows, the splits hold {total:,} of them: the counts don't add up."
    ]


def _splits(summary: Mapping[str, Any]) -> dict[str, Any]:
    given = summary.get("splits", {})
    return {split: given[split] for split in (*SPLITS, *sorted(set(given) - set(SPLITS))) if split in given}


def _draw(summary: Mapping[str, Any], lengths: Lengths) -> dict[str, bytes]:
    drawn = {"lengths": pictures.length_histograms(lengths)}
    if summary.get("funnel"):
        drawn["funnel"] = pictures.funnel(summary["funnel"])
    labels = {split: about.get("labels", {}) for split, about in _splits(summary).items()}
    if any(label for counts in labels.values() for label in counts):
        drawn["labels"] = pictures.label_shares(labels)
    return drawn


def _labels(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Every label's rows in each split, the most frequent first, at most `MOST_LABELS` of them."""
    counts = {split: about.get("labels", {}) for split, about in splits.items()}
    order = pictures.by_frequency(counts)
    lines = [(label or pictures.NO_LABEL, [counts[split].get(label, 0) for split in counts]) for label in order]
    return {
        "total": len(order),
        "lines": lines[:MOST_LABELS],
        "sizes": [sum(counts[split].values()) for split in counts],
        "shown": min(len(order), pictures.TOP),
    }


def _spread(lengths: Lengths) -> list[dict[str, Any]]:
    """For each split its smallest, largest and in-between lengths, and the rows over the limit."""
    return [
        {
            "split": split,
            "total": lengths.totals[split],
            "n": len(values),
            "bounds": [min(values, default=None), *_percentiles(values), max(values, default=None)],
            "over": _over(values, lengths),
        }
        for split, values in lengths.by_split.items()
    ]


def _percentiles(values: Sequence[int]) -> list[int | None]:
    if not values:
        return [None] * len(PERCENTILES)
    return [int(value) for value in np.percentile(values, PERCENTILES, method="inverted_cdf")]


def _over(values: Sequence[int], lengths: Lengths) -> dict[str, Any] | None:
    if lengths.limit is None or not values:
        return None
    num_over = sum(value > lengths.limit for value in values)
    return {"num": num_over, "share": wilson(num_over, len(values))}


def _asked(prepare: Mapping[str, Any]) -> dict[str, list[str] | None]:
    """Kinds and languages that the configuration names; None where the summary doesn't hold it."""
    if not prepare:
        return {"redact": None, "languages": None}
    return {"redact": prepare["redact"]["kinds"], "languages": prepare["filters"]["languages"] or []}


def _contamination(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The part of the summary with its n-gram sizes from the longest and a sentence on the policy."""
    if found is None:
        return None
    sizes = {size for about in found["against"].values() for size in about["ngrams"]}
    return {**found, "sizes": sorted(sizes, key=int, reverse=True), "meaning": POLICIES[found["policy"]]}


def _shares(heldout: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(label, target, achieved) of a matched held-out set."""
    target, achieved = heldout.get("target_shares") or {}, heldout.get("achieved_shares") or {}
    return [(label, target.get(label, 0.0), achieved.get(label, 0.0)) for label in sorted(target | achieved)]


def _short(digest: str | None) -> str:
    return "-" if digest is None else digest[:12]
