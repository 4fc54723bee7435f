"""Every number of a report, computed again from the Parquet table with pandas and `by_hand` alone."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import fisher_exact

from tests.evaluation import by_hand
from tests.evaluation.by_hand import Bounded, Number
from tests.evaluation.example import HARNESS, MATCH
from tests.evaluation.shown import Key, key

SCORES = {"calibration/brier", "calibration/auroc", "calibration/aurc", "calibration/temperature"}
SCORES |= {"calibration/brier_calibrated", f"{HARNESS}/{MATCH}"}
COUNTS = {"num_rows", "num_in_scope", "num_errors"}


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and its setup, without the project's code."""
    table = pq.read_table(path)
    frame = table.to_pandas()
    frame["values"] = [dict(pairs) for pairs in frame["values"]]
    frame["lost"] = frame["error"].notna()
    return frame, json.loads(table.schema.metadata[b"tunesmith.setup"])


@dataclass(frozen=True)
class Metric:
    """A metric's observations: `value` by row and kind, with `group`; whether they are verdicts."""

    frame: pd.DataFrame
    verdicts: bool
    least: float = 0.0
    most: float = 1.0

    def bounded(self) -> Bounded:
        values, groups = self.frame["value"].tolist(), self.frame["group"].tolist()
        return by_hand.share(values, groups) if self.verdicts else by_hand.mean(values, groups, self.least, self.most)


def metrics(frame: pd.DataFrame, setup: dict[str, Any]) -> dict[str, Metric]:
    """The metrics of one subject that rest on observations."""
    given = frame[~frame["lost"]]
    held, pressed = given[given["suite"] == "heldout"], given[given["suite"] == "robustness"]
    inside, outside = held[held["in_scope"]], held[~held["in_scope"]]
    found = {
        "correctness/accuracy": _verdicts(inside, inside["correct"]),
        "correctness/unparsed_rate": _verdicts(held, held["parsed"].isna()),
        "correctness/unfinished_rate": _verdicts(held, ~held["finished"]),
        "refusal/decline_rate": _verdicts(outside, outside["declined"]),
        "refusal/over_refusal_rate": _verdicts(inside, inside["declined"]),
    }
    for name in sorted({name for values in held["values"] for name in values}):
        suite = "correctness" if name == "token_f1" else "faithfulness"
        found[f"{suite}/{name}"] = _values(held, name)
    for k in setup["pass_at"]:
        found[f"correctness/pass_at_{k}"] = _pass_at(given[given["suite"] == "samples"], k)
    tried = given[(given["suite"] == "red_team") & given["correct"].notna()]
    found |= _with_kinds("red_team/attack_success_rate", tried, ~tried["correct"].astype(bool))
    plain = {row["row_id"]: _reading(row) for _, row in held.iterrows()}
    pressed = pressed[pressed["row_id"].isin(list(plain))]
    same = pd.Series([_reading(row) == plain[row["row_id"]] for _, row in pressed.iterrows()], index=pressed.index)
    found |= _with_kinds("robustness/consistency", pressed, same)
    scoped = pressed[pressed["in_scope"]]
    found["robustness/accuracy"] = _verdicts(scoped, scoped["correct"])
    examples = _values(given[given["suite"] == HARNESS], MATCH)
    found[f"{HARNESS}/{MATCH}"] = Metric(examples.frame, False, -math.inf, math.inf)
    return {name: metric for name, metric in found.items() if len(metric.frame)}


def _verdicts(frame: pd.DataFrame, values: "pd.Series[Any]") -> Metric:
    return Metric(frame[["row_id", "kind", "group"]].assign(value=values.astype(bool).astype(float)), True)


def _values(frame: pd.DataFrame, name: str) -> Metric:
    chosen = frame[[name in values for values in frame["values"]]]
    return Metric(chosen[["row_id", "kind", "group"]].assign(value=[v[name] for v in chosen["values"]]), False)


def _pass_at(frame: pd.DataFrame, k: int) -> Metric:
    lines = []
    for row_id, drawn in frame.groupby("row_id", sort=False):
        total, right = len(drawn), int(drawn["correct"].sum())
        if total >= k:
            value = 1 - math.comb(total - right, k) / math.comb(total, k)
            lines.append({"row_id": row_id, "kind": "", "group": drawn["group"].iloc[0], "value": value})
    return Metric(pd.DataFrame(lines), False)


def _with_kinds(name: str, frame: pd.DataFrame, values: "pd.Series[Any]") -> dict[str, Metric]:
    found = {name: _verdicts(frame, values)}
    for kind in frame["kind"].unique():
        here = frame["kind"] == kind
        found[f"{name}_{kind}"] = _verdicts(frame[here], values[here])
    return found


def _reading(row: "pd.Series[Any]") -> str:
    return str(row["parsed"]) if isinstance(row["parsed"], str) else str(row["answer"]).strip()


# --- what the page has to show ------------------------------------------------------------------


def expected(path: Path, shown_subjects: list[str]) -> dict[Key, Number]:
    """Every number by its attributes, but for those of the held-out set's card."""
    frame, setup = read(path)
    by_subject = {name: frame[frame["subject"] == name] for name in setup["subjects"]}
    seen = {name: metrics(given, setup) for name, given in by_subject.items()}
    found: dict[Key, Number] = {}
    for name, given in by_subject.items():
        for metric, observed in seen[name].items():
            found |= bounded(observed.bounded(), len(observed.frame), subject=name, metric=metric)
        found |= {k: v for part in (_counts, _cost, _judge) for k, v in part(given, setup, name)}
        found |= confidences(given, setup, name)
    candidate = setup["candidate"]
    for other in setup["subjects"]:
        if other != candidate:
            for metric in seen[candidate].keys() & seen[other].keys():
                about = {"subject": candidate, "metric": metric, "other": other}
                found |= compared(seen[candidate][metric], seen[other][metric], about)
    found |= slices(by_subject[candidate], setup, candidate)
    for name in {candidate, setup["reference"]}:
        found |= labels(by_subject[name], name, name == candidate)
    found |= attacks(by_subject[candidate], candidate)
    return found | surest(frame, shown_subjects)


def bounded(found: Bounded, count: int, **about: object) -> dict[Key, Number]:
    return {
        key("value", **about): found.value,
        key("low", **about): found.low,
        key("high", **about): found.high,
        key("n", **about): Number(count),
    }


def _counts(given: pd.DataFrame, setup: dict[str, Any], subject: str) -> Iterator[tuple[Key, Number]]:
    held = given[given["suite"] == "heldout"]
    found = {"num_rows": len(held), "num_in_scope": held["in_scope"].sum(), "num_errors": held["lost"].sum()}
    for name, value in found.items():
        yield key("value", subject=subject, metric=f"correctness/{name}"), Number(float(value))
        yield key("n", subject=subject, metric=f"correctness/{name}"), Number(len(held))


def _cost(given: pd.DataFrame, setup: dict[str, Any], subject: str) -> Iterator[tuple[Key, Number]]:
    answered = given[(given["suite"] == "heldout") & ~given["lost"]]
    timed = given[(given["suite"] == "latency") & given["latency_s"].notna()]["latency_s"]
    paid, clock = answered["cost"].dropna(), setup["clocks"][subject]
    found: dict[str, tuple[float, float]] = {
        "latency_p50": (float(timed.quantile(0.5)), len(timed)),
        "latency_p95": (float(timed.quantile(0.95)), len(timed)),
        "tokens_per_second": (clock["batch_tokens"] / clock["batch_seconds"], clock["batch_answers"]),
        "mean_tokens": (answered["num_tokens"].mean(), len(answered)),
    }
    if clock["peak_memory_gb"]:
        found["peak_memory_gb"] = (clock["peak_memory_gb"], len(answered))
    if len(paid):
        found |= {"dollars": (paid.sum(), len(paid)), "dollars_per_1000": (1000 * paid.mean(), len(paid))}
    for name, (value, count) in found.items():
        yield key("value", subject=subject, metric=f"cost/{name}"), Number(float(value))
        yield key("n", subject=subject, metric=f"cost/{name}"), Number(float(count))


def _judge(given: pd.DataFrame, setup: dict[str, Any], subject: str) -> Iterator[tuple[Key, Number]]:
    """From the codes of the two replies: 1 prefers the first answer, 0 the second, 0.5 neither."""
    told = given[given["suite"] == "judge"]
    if not len(told):
        return
    fine = told[~told["lost"] & told["values"].map(lambda values: "out_of_form" not in values)]
    first = np.array([values.get("first", math.nan) for values in fine["values"]])
    second = np.array([values.get("second", math.nan) for values in fine["values"]])
    groups = fine["group"].to_numpy()
    asked = ~np.isnan(first)
    won, lost = (first == 1) & (second == 0), (first == 0) & (second == 1)
    agreed = won | lost | ((first == 0.5) & (second == 0.5))
    told_replies = np.concatenate([first[asked], second[asked]])
    preferring = told_replies != 0.5
    reply_groups = np.concatenate([groups[asked], groups[asked]])[preferring]
    decided = won | lost
    shares = {
        "decided_win_rate": (won[decided], groups[decided], decided.sum()),
        "tie_rate": (~decided, groups, len(fine)),
        "order_dependent_rate": (~agreed[asked], groups[asked], asked.sum()),
        "first_position_rate": (told_replies[preferring] == 1, reply_groups, asked.sum()),
    }
    win_rate = by_hand.mean((won + (1 - won - lost) / 2.0).tolist(), groups.tolist(), 0.0, 1.0)
    yield from bounded(win_rate, len(fine), subject=subject, metric="judge/win_rate_vs_base").items()
    for name, (values, of, count) in shares.items():
        found = by_hand.share(values.astype(float).tolist(), of.tolist())
        yield from bounded(found, int(count), subject=subject, metric=f"judge/{name}_vs_base").items()
    counts = {"num_judged": len(fine), "num_errors": told["lost"].sum()}
    counts["num_out_of_form"] = len(told) - sum(counts.values())
    for name, count in counts.items():
        yield key("value", subject=subject, metric=f"judge/{name}_vs_base"), Number(float(count))
        yield key("n", subject=subject, metric=f"judge/{name}_vs_base"), Number(len(told))


def confidences(given: pd.DataFrame, setup: dict[str, Any], subject: str) -> dict[Key, Number]:
    known = given[(given["suite"] == "heldout") & given["confidence"].notna() & given["correct"].notna()]
    if not len(known):
        return {}
    right, groups, bins = known["correct"].astype(float).tolist(), known["group"].tolist(), setup["bins"]
    found: dict[Key, Number] = {}
    about: dict[str, Any] = {"subject": subject}
    for column, ending, when in (("confidence", "", "as told"), ("calibrated", "_calibrated", "after the temperature")):
        sure = known[column].tolist()
        for name, bounds in by_hand.calibration(sure, right, groups, bins).items():
            if not ending or name in ("ece", "ece_by_chance", "ece_mass", "brier"):
                found |= bounded(bounds, len(known), metric=f"calibration/{name}{ending}", **about)
        found |= _bins(known, column, bins, subject, when)
    temperature = {"metric": "calibration/temperature", **about}
    found |= {
        key("value", **temperature): Number(setup["temperatures"][subject]),
        key("n", **temperature): Number(len(known)),
    }
    for point, wanted in enumerate((0.2, 0.4, 0.6, 0.8, 1.0)):
        least = known["confidence"].sort_values(ascending=False).iloc[math.ceil(wanted * len(known) - 1e-9) - 1]
        taken = known[known["confidence"] >= least]
        here = {"metric": "calibration/selective", "point": point, **about}
        found[key("coverage", **here)] = Number(len(taken) / len(known))
        found[key("value", **here)] = Number(taken["correct"].astype(float).mean())
    return found


def _bins(known: pd.DataFrame, column: str, bins: int, subject: str, when: str) -> dict[Key, Number]:
    sure = known[column].to_numpy()
    members = by_hand.mass_bins(sure, bins)
    found: dict[Key, Number] = {}
    for place, number in enumerate(sorted(set(members.tolist()), reverse=True)):
        here, inside = known[members == number], sure[members == number]
        about = {"subject": subject, "metric": "calibration/bin", "when": when, "bin": place}
        accuracy = by_hand.share(here["correct"].astype(float).tolist(), here["group"].tolist())
        found |= bounded(accuracy, len(here), **about)
        for part, value in (("from", inside.min()), ("to", inside.max()), ("confidence", inside.mean())):
            found[key(part, **about)] = Number(float(value))
    return found


def compared(ours: Metric, theirs: Metric, about: dict[str, Any]) -> dict[Key, Number]:
    """Candidate minus other on the observations of both."""
    joined = ours.frame.merge(theirs.frame[["row_id", "kind", "value"]], on=["row_id", "kind"], suffixes=("", "_other"))
    steps, groups = (joined["value"] - joined["value_other"]).tolist(), joined["group"].tolist()
    shared = len(set(groups)) < len(groups)
    found: dict[Key, Number] = {}
    if ours.verdicts:
        gained, lost = steps.count(1.0), steps.count(-1.0)
        difference = by_hand.outcomes(steps, groups, -1.0)
        found |= {key("gained", **about): Number(gained), key("lost", **about): Number(lost)}
        independent = len(steps) / by_hand.design_effect(steps, groups)
        missed: float | None = by_hand.detectable_verdicts(independent, (gained + lost) / len(steps))
        p = by_hand.sign_flips(steps, groups) if shared else Number(by_hand.mcnemar(gained, lost))
    else:
        reach = ours.most - ours.least
        difference = by_hand.mean(steps, groups, -reach, reach)
        missed, p = by_hand.detectable_mean(steps, groups), by_hand.sign_flips(steps, groups)
    found[key("p", **about)] = p
    if missed is not None:
        found[key("detectable", **about)] = Number(missed)
    return found | bounded(difference, len(steps), **about)


def slices(given: pd.DataFrame, setup: dict[str, Any], subject: str) -> dict[Key, Number]:
    judged = given[(given["suite"] == "heldout") & given["correct"].notna()]
    columns = {"label": judged["label"], "channel": judged["kept"].map(lambda kept: json.loads(kept)["channel"])}
    found: dict[Key, Number] = {}
    tests, keys = [], []
    for column in setup["slices"]:
        for value in sorted(set(columns[column])):
            here = columns[column] == value
            own, rest = judged[here]["correct"].astype(float), judged[~here]["correct"].astype(float)
            about = {"subject": subject, "metric": "slices/accuracy", "column": column, "slice": value}
            found |= bounded(by_hand.share(own.tolist(), judged[here]["group"].tolist()), len(own), **about)
            found[key("difference", **about)] = Number(own.mean() - rest.mean())
            tests.append(fisher_exact([[own.sum(), (1 - own).sum()], [rest.sum(), (1 - rest).sum()]]).pvalue)
            keys.append(key("p", **about))
    return found | {name: Number(p) for name, p in zip(keys, by_hand.holm(tests), strict=True)}


def labels(given: pd.DataFrame, subject: str, with_wrong: bool) -> dict[Key, Number]:
    judged = given[(given["suite"] == "heldout") & given["correct"].notna()]
    found: dict[Key, Number] = {}
    for label, here in judged.groupby("label"):
        about = {"subject": subject, "metric": "labels/accuracy", "label": label}
        found |= bounded(
            by_hand.share(here["correct"].astype(float).tolist(), here["group"].tolist()), len(here), **about
        )
        wrong = here[~here["correct"].astype(bool)]["parsed"].fillna("-").value_counts()
        if with_wrong and len(wrong):
            found[key("wrong", **about)] = Number(float(wrong.iloc[0]))
    return found


def attacks(given: pd.DataFrame, subject: str) -> dict[Key, Number]:
    tried = given[(given["suite"] == "red_team") & given["correct"].notna()]
    found: dict[Key, Number] = {}
    parts = {"all": tried, **{str(kind): here for kind, here in tried.groupby("kind")}}
    for kind, here in parts.items():
        about = {"subject": subject, "metric": "red_team/won", "kind": kind}
        found |= {
            key("value", **about): Number(int((~here["correct"].astype(bool)).sum())),
            key("n", **about): Number(len(here)),
        }
    return found


def surest(frame: pd.DataFrame, subjects: list[str]) -> dict[Key, Number]:
    """The confidence in every held-out answer; the page shows those of the rows that it shows."""
    held = frame[(frame["suite"] == "heldout") & frame["calibrated"].notna() & frame["subject"].isin(subjects)]
    return {
        key("confidence", subject=row["subject"], row=row["row_id"]): Number(row["calibrated"])
        for _, row in held.iterrows()
    }
