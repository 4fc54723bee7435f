"""The gate: a policy and what is known of a version become rulings, one a rule. Nothing is asked twice or guessed."""

import operator
from collections.abc import Sequence

from pipelines.config.gating import Gate, Licenses, Rule, Versus
from pipelines.release import pairing
from pipelines.release.evidence import Evidence
from pipelines.release.origin import age_ruling, export_rulings, own_files_ruling
from pipelines.release.ruling import Ruling, is_usable

SIGNS = {"at_least": ">=", "at_most": "<=", "above": ">"}
BOUNDS = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt}


def judge(gate: Gate, version: Evidence, incumbent: Evidence | None) -> list[Ruling]:
    """Every rule of the policy, applied; `incumbent` is who holds the alias, None where nobody does."""
    rulings = [evaluated_ruling(version)]
    rulings += [bound_ruling(name, rule, version.metrics) for name, rule in gate.rules.items()]
    rulings += [versus_ruling(name, rule, gate.resamples, version, incumbent) for name, rule in gate.compare.items()]
    rulings += license_rulings(gate.licenses, version)
    if gate.contamination is not None:
        rulings.append(contamination_ruling(gate.contamination, version))
    if gate.parity:
        rulings.append(parity_ruling(version))
    if gate.evaluation.max_age_days is not None:
        rulings.append(age_ruling(gate.evaluation.max_age_days, version))
    if gate.evaluation.own_files:
        rulings.append(own_files_ruling(version))
    if gate.serving.vllm:
        rulings.append(vllm_ruling(version))
    return rulings + export_rulings(gate.exports, version)


def failed(rulings: Sequence[Ruling]) -> list[str]:
    """Names of the rules that don't pass."""
    return [ruling.name for ruling in rulings if not ruling.passed]


def evaluated_ruling(version: Evidence) -> Ruling:
    """A version without scores has not been evaluated."""
    found = f"{len(version.metrics)} metrics" if version.metrics else None
    reason = "what nobody has judged isn't promoted"
    return Ruling("evaluated", "artifacts/scores.json", "scores", found, bool(version.metrics), reason)


def bound_ruling(name: str, rule: Rule, metrics: dict[str, float]) -> Ruling:
    """A metric that is missing or not finite fails its rule."""
    value = metrics.get(rule.metric)
    if isinstance(rule.value, list):
        low, high = rule.value
        asked, passed = f"{low:g} to {high:g}", is_usable(value) and low <= (value or 0.0) <= high
    else:
        asked = f"{SIGNS[rule.bound]} {rule.value:g}"
        passed = is_usable(value) and BOUNDS[rule.bound](value or 0.0, rule.value)
    return Ruling(name, rule.metric, asked, value, bool(passed), rule.reason)


def versus_ruling(name: str, rule: Versus, resamples: int, version: Evidence, incumbent: Evidence | None) -> Ruling:
    """By the lower end of the paired interval; against the base it is the one that evaluate recorded."""
    floor = rule.margin if rule.ask == "superior" else -rule.margin
    asked = f"> {floor:g} ({rule.ask.replace('_', '-')})"
    if rule.against == "base":
        about = f"eval/{rule.metric}_vs_base_low"
        low = version.metrics.get(about)
        return Ruling(name, about, asked, low, is_usable(low) and (low or 0.0) > floor, rule.reason)
    about = f"{rule.metric} against the incumbent, lower end"
    if incumbent is None:
        return Ruling(name, about, asked, "no incumbent", True, rule.reason)
    about = f"{rule.metric} against {incumbent.uri}, lower end"
    if incumbent.digest == version.digest:
        return Ruling(name, about, asked, "it is the incumbent", True, rule.reason)
    try:
        low = pairing.lower_end(incumbent, version, resamples)
    except pairing.Unpaired as error:
        return Ruling(name, about, asked, str(error), False, rule.reason)
    return Ruling(name, about, asked, low, is_usable(low) and low > floor, rule.reason)


def license_rulings(licenses: Licenses, version: Evidence) -> list[Ruling]:
    """Base, data and teachers by the allow-lists; a base or data without a licence on record fails.

    Who learnt from no teacher has no licence of one, and passes.
    """
    asked = {"base": licenses.base, "data": licenses.data, "teachers": licenses.teachers}
    reasons = {
        "base": "an adapter is used together with its base",
        "data": "what is learnt from rows may be used only as their licences allow",
        "teachers": "what a teacher wrote may be learnt from only as its licence allows",
    }
    rulings = []
    for of, allowed in asked.items():
        if allowed is None:
            continue
        found = version.licenses[of]
        refused = [name for name in found if name not in allowed]
        shown = ", ".join(refused or found) or ("none" if of == "teachers" else None)
        passed = not refused and (bool(found) or of == "teachers")
        about = f"{'licence' if of == 'base' else 'licences'} of {of}{' not on the list' if refused else ''}"
        rulings.append(
            Ruling(f"license_{of}", about, f"among {', '.join(allowed) or 'none'}", shown, passed, reasons[of])
        )
    return rulings


def contamination_ruling(asked: str, version: Evidence) -> Ruling:
    """The report of prepare: `clean`, or `present` where something was found and left in; else there is none."""
    found = version.tags.get("contamination")
    passed = found == "clean" or (asked == "present" and found == "present")
    shown = None if found in (None, "absent") else found
    reason = "scores on rows that training has seen say nothing"
    return Ruling(
        "contamination", "contamination report", "clean" if asked == "clean" else "any", shown, passed, reason
    )


def parity_ruling(version: Evidence) -> Ruling:
    """What package found: every form of the version answers as the evaluated adapter; tag and file must agree."""
    tag, papers = version.tags.get("parity.passed"), version.parity
    said = None if papers is None else papers.get("passed")
    forms = {} if papers is None else papers.get("forms") or {}
    lost = [name for name, form in forms.items() if not form.get("passed")]
    passed = tag == "true" and said is True and not lost
    found = None if tag is None or said is None else "true" if passed else ", ".join(lost) or f"tag {tag}, file {said}"
    reason = "what was evaluated must be what is served"
    return Ruling("parity", "parity.json", "true", found, passed, reason)


def vllm_ruling(version: Evidence) -> Ruling:
    """Whether package found that vLLM can load the adapter."""
    found = version.tags.get("serving.vllm")
    return Ruling("vllm", "serving.vllm", "true", found, found == "true", "it is to be served by vLLM")
