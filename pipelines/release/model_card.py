"""The model card of a version, filled from the run: `README.md`, with the head that the Hub reads."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipelines.config.paths import resolve
from pipelines.evaluation.card import Card, read_card
from pipelines.release.papers import Made, contamination, lineage

METRICS = (
    "correctness/accuracy",
    "correctness/token_f1",
    "correctness/rouge_l",
    "correctness/unparsed_rate",
    "refusal/decline_rate",
    "refusal/over_refusal_rate",
    "slices/worst_slice_accuracy",
    "robustness/consistency",
    "red_team/attack_success_rate",
    "calibration/ece",
)
PEFT = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "num_virtual_tokens")


def model_card(made: Made, name: str, parity: Mapping[str, Any]) -> str:
    """The card of the version of registered model `name`."""
    card = made.config.task.card
    parts = [
        _head(made),
        f"# {name}",
        _purpose(made, read_card(resolve(card)) if card else None),
        "## Use",
        _use(made, name),
        "## Training",
        "\n".join(_training(made)),
        "## Evaluation",
        "\n".join(_evaluation(made)),
        "## The same in every form",
        "\n".join(_parity(parity)),
        "## Licences",
        "[NOTICE.md](NOTICE.md) lists those of base, data and teachers, and the attributions that they ask for.",
        "## Lineage",
        "\n".join(_lineage(made)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(made: Made) -> str:
    license = made.config.model.license
    known = not license.id.startswith("LicenseRef-")
    head: dict[str, Any] = {
        "base_model": made.config.model.id,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
    }
    head |= {"license": license.id.lower()} if known else {"license": "other", "license_name": license.id}
    if not known and license.url:
        head["license_link"] = license.url
    head["tags"] = [made.config.adapter.method, made.adapter.made_by["stage"]]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _purpose(made: Made, card: Card | None) -> str:
    task = made.config.task.name
    if card is None:
        return f"An adapter for the task {task}. No card vouches for the rows that it was judged on."
    return f"An adapter for the task {task}.\n\n{card.capability}\n\nWhat the scores don't show: {card.limits}"


def _use(made: Made, name: str) -> str:
    temperature = made.scores.about["temperature"]
    fitted = f" Its confidence is calibrated at temperature {temperature:.4f}." if temperature else ""
    return (
        f"```python\nmodel = mlflow.pyfunc.load_model('models:/{name}@champion')\n"
        "model.predict({'messages': [{'role': 'user', 'content': '...'}]})\n```\n\n"
        f"Answers are greedy, as they were judged, up to {made.config.evaluate.max_new_tokens} tokens.{fitted}"
    )


def _training(made: Made) -> Iterator[str]:
    config, about = made.config, made.adapter.about
    settings = {key: config.adapter.peft[key] for key in PEFT if config.adapter.peft.get(key)}
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    yield f"- {config.adapter.name} ({config.adapter.method}{': ' + shown if shown else ''}) on {config.model.id}"
    if config.adapter.quantization is not None:
        yield f"- the base in 4 bit ({config.adapter.quantization.bnb_4bit_quant_type}) while it was trained"
    yield f"- by {made.adapter.made_by['stage']}, {about.get('steps')} steps, seed {about.get('seed')}"
    if made.trained is not None:
        yield f"- {made.trained.about['num_rows']['train']:,} rows, digest `{made.rows_digest[:12]}`"
    found = contamination(made)
    if found["present"]:
        yield f"- contaminated rows: {found['removed']:,} removed, {found['remaining']:,} trained on"
    else:
        yield "- no report on contamination with the held-out rows"
    for teacher in about.get("teachers", []):
        yield f"- learnt from {teacher.get('id') or teacher.get('model') or teacher.get('endpoint')}"


def _evaluation(made: Made) -> Iterator[str]:
    about = made.scores.about
    reference, metrics = about["reference"], about["metrics"]
    yield f"{about['num_rows']:,} held-out rows, judged {made.evaluated_at}; intervals are 95 %."
    yield ""
    yield f"| metric | this adapter | {reference} |"
    yield "|---|---|---|"
    for name in METRICS:
        if (ours := _shown(metrics, name)) is not None:
            yield f"| {name} | {ours} | {_shown(about['subjects'][reference], name) or ''} |"
    if (gain := _shown(metrics, f"correctness/accuracy_vs_{reference}")) is not None:
        yield f"| accuracy against {reference}, paired | {gain} | |"


def _shown(metrics: Mapping[str, float], name: str) -> str | None:
    value = metrics.get(f"eval/{name}")
    low, high = metrics.get(f"eval/{name}_low"), metrics.get(f"eval/{name}_high")
    if value is None:
        return None
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    yield "Held against the adapter in memory, as it was trained: greedy tokens and the log-probability of each."
    yield ""
    yield "| form | equal answers | largest difference | allowed | |"
    yield "|---|---|---|---|---|"
    for form, found in parity["forms"].items():
        apart = found["max_logprob_difference"]
        told = "" if apart is None else f"{apart:.2g}"
        passed = "passed" if found["passed"] else "differs"
        equal = f"{found['tokens_equal']} of {found['rows']}"
        yield f"| {form} | {equal} | {told} | {found['tolerance']:g} | {passed}; {found['note']} |"
    vllm = parity["serving"]["vllm"]
    yield ""
    yield (
        f"vLLM loads it with `--max-lora-rank {vllm['max_lora_rank']}`."
        if vllm["loadable"]
        else f"vLLM can't load it: {vllm['why']}."
    )


def _lineage(made: Made) -> Iterator[str]:
    chain = lineage(made)
    yield f"- base `{chain['base']['revision']}`"
    yield f"- rows `{chain['rows']['digest']}`"
    yield f"- adapter `{chain['adapter']['digest']}`, run {chain['adapter']['run']}"
    yield f"- scores `{chain['scores']['digest']}`, run {chain['scores']['run']}"
    dirty = " with changes on top" if chain["git"]["dirty"] else ""
    yield f"- code: commit {chain['git']['commit']}{dirty}, lock `{chain['lock']}`"
    yield "- everything else: [lineage.json](lineage.json)"
