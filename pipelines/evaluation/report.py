"""The evaluation as one self-contained HTML page."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.evaluation import compare, score
from pipelines.evaluation.answer import query
from pipelines.evaluation.compare import Comparison
from pipelines.evaluation.evidence import ADAPTER, BASE, Evidence
from pipelines.interval import Interval

# Each rate with what it is a share of; the report prints that many rows beside it.
RATES = {
    "accuracy": "in scope",
    "decline_rate": "out of scope",
    "over_refusal_rate": "in scope",
    "unparsed_rate": "all",
    "unfinished_rate": "all",
}


def html_report(evidence: Evidence, pictures: Mapping[str, bytes], title: str, provenance: Mapping[str, str]) -> str:
    """The page's text: no script and no external resource, all strings escaped.

    `pictures` as `draw` returns them; `provenance` is printed as name and value.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "size": _size,
        "span": _span,
        "p_value": _p_value,
    }
    return environment.get_template("report.html.jinja").render(
        title=title,
        verdict=_verdict(evidence.comparison),
        evidence=evidence,
        rates=_rates(evidence),
        samples=_samples(evidence),
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        definitions=score.DEFINITIONS | compare.DEFINITIONS,
        provenance=provenance,
    )


def _verdict(comparison: Comparison) -> str:
    difference = comparison.difference
    if difference.low > 0:
        return "The adapter is more accurate than the base: the interval of the difference lies above 0."
    if difference.high < 0:
        return "The adapter is less accurate than the base: the interval of the difference lies below 0."
    missed = _size(comparison.minimum_detectable_difference)
    return (
        "No difference in accuracy is shown: its interval includes 0. That is no proof of equality, because "
        f"a true difference below {missed} would often be missed."
    )


def _rates(evidence: Evidence) -> list[dict[str, Any]]:
    base, adapter = evidence.scores[BASE], evidence.scores[ADAPTER]
    inside, outside = int(base["num_in_scope"]), int(base["num_out_of_scope"])
    sizes = {"in scope": inside, "out of scope": outside, "all": inside + outside}
    return [
        {
            "name": name,
            "of": of,
            "n": sizes[of],
            BASE: _interval(base, name),
            ADAPTER: _interval(adapter, name),
        }
        for name, of in RATES.items()
        if name in base
    ]


def _interval(scores: Mapping[str, float], name: str) -> Interval:
    return Interval(scores[name], scores[f"{name}_low"], scores[f"{name}_high"])


def _samples(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {
            "source": evidence.rows[i].source,
            "query": query(evidence.rows[i]),
            "expected": evidence.rows[i].answer,
            BASE: evidence.answers[BASE][i],
            ADAPTER: evidence.answers[ADAPTER][i],
        }
        for i in evidence.samples
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _size(share: float) -> str:
    return f"{100 * share:.1f} points"


def _span(interval: Interval, digits: int) -> str:
    return f"{100 * interval.low:.{digits}f} to {100 * interval.high:.{digits}f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
