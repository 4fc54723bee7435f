"""lm-eval's tasks over our engine: the same answers, likelihoods and verdicts as over its own backend."""

import csv
import json
import logging
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval")

import datasets
import huggingface_hub
from lm_eval.models.huggingface import HFLM

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Harness
from pipelines.errors import UserError
from pipelines.policy.template import texts
from pipelines.subjects.harness import HarnessResult, harness_model, run_tasks

LOCAL = {"train": "data/gsm8k/train.jsonl", "test": "data/gsm8k/test.jsonl"}
CHOICES = """\
task: bank_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/bank.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "Query: {{text}}\\nIntent:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{target}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
"""
TEXTS = """\
task: bank_texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/bank.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}} {{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
LAST = """\
task: bank_last
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/bank.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text}}\\nIntent: "
doc_to_target: "{{label}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
WRITTEN = """\
task: bank_written
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/bank.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{label}}"
generation_kwargs: {until: ["\\n", "_p", "ar"], max_gen_toks: 16, GENERATION}
metric_list: [{metric: exact_match, ignore_case: true}]
metadata: {version: 2.0}
"""
GROUP = """\
group: bank
task: [bank_choices, gsm8k]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
UNSAFE = """\
task: bank_code
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/bank.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{label}}"
unsafe_code: true
"""
PICTURES = UNSAFE.replace("bank_code", "bank_pictures").replace("unsafe_code: true", "doc_to_image: text")
IMPORTS = UNSAFE.replace("bank_code", "bank_imports").replace("unsafe_code: true", "process_docs: !function nowhere.at")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(PROJECT / "data/models/tiny", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four queries to a bank with six labels to choose from, and tasks over them."""
    folder = tmp_path_factory.mktemp("tasks")
    labels = json.loads((PROJECT / "data/banking77/categories.json").read_text(encoding="utf-8"))
    drawn = random.Random(5)
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as stream:
        records = list(csv.DictReader(stream))[::130][:24]
    with (folder / "bank.jsonl").open("w", encoding="utf-8") as stream:
        for record in records:
            others = drawn.sample([label for label in labels if label != record["category"]], 5)
            choices = drawn.sample([record["category"], *others], 6)
            row = {"text": record["text"], "label": record["category"], "choices": choices}
            stream.write(json.dumps(row | {"target": choices.index(record["category"])}) + "\n")
    sampled = WRITTEN.replace("bank_written", "bank_sampled").replace("GENERATION", "do_sample: true, temperature: 2.0")
    nucleus = sampled.replace("bank_sampled", "bank_nucleus").replace("2.0}", "1.0, top_p: 0.9}")
    written = WRITTEN.replace("GENERATION", "do_sample: false")
    tasks = (CHOICES, TEXTS, LAST, written, sampled, nucleus, GROUP, UNSAFE, PICTURES, IMPORTS)
    for number, text in enumerate(tasks):
        (folder / f"task{number}.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return folder


def settings(folder: Path | None, *tasks: str, **changes: Any) -> Harness:
    given: dict[str, Any] = {"tasks": list(tasks), "num_fewshot": None, "limit": None, "chat_template": False}
    given |= {"include_path": str(folder) if folder else None, "data": {"gsm8k": LOCAL}}
    return Harness.model_validate(given | changes)


def check_agreement(ours: HarnessResult, theirs: HarnessResult) -> None:
    assert len(ours.rows) == len(theirs.rows)
    for one, other in zip(ours.rows, theirs.rows, strict=True):
        assert replace(one, value=None, logliks=None) == replace(other, value=None, logliks=None)
        assert one.value == (None if other.value is None else pytest.approx(other.value, abs=1e-4))
        assert one.logliks == (None if other.logliks is None else pytest.approx(other.logliks, abs=1e-4))
    assert ours.aggregated.keys() == theirs.aggregated.keys()
    for task, metrics in ours.aggregated.items():
        assert metrics == pytest.approx(theirs.aggregated[task], rel=1e-5)


@pytest.mark.parametrize(
    ("tasks", "changes", "max_length"),
    [
        (["bank_choices", "bank_last", "bank_texts"], {}, 1024),
        (["bank_choices", "bank_last", "bank_texts"], {"num_fewshot": 2}, 40),
        (["bank_written", "bank_choices"], {"chat_template": True, "num_fewshot": 1}, 1024),
        (["bank_written"], {}, 24),
    ],
)
def test_every_kind_of_request_agrees_with_lm_evals_own_backend(
    model: Any, tokenizer: Any, folder: Path, tasks: list[str], changes: dict[str, Any], max_length: int
) -> None:
    asked = settings(folder, *tasks, **changes)
    theirs = run_tasks(asked, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=max_length), 3)
    for batch_size in (1, 8):
        check_agreement(run_tasks(asked, harness_model(model, tokenizer, {}, batch_size, max_length), 3), theirs)
    assert len({row.answer for row in theirs.rows}) > 6


def test_gsm8k_runs_offline_on_local_files(model: Any, tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    asked = settings(None, "gsm8k", num_fewshot=1, limit=6, chat_template=True)
    found = run_tasks(asked, harness_model(model, tokenizer, {}, 6), 3)
    lines = (PROJECT / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    strict = [row for row in found.rows if row.filter == "strict-match"]
    assert {row.filter for row in found.rows} == {"strict-match", "flexible-extract"}
    assert [row.doc_id for row in strict] == list(range(6))
    with (PROJECT / "data/gsm8k/train.jsonl").open(encoding="utf-8") as stream:
        train = {json.loads(line)["question"] for line in stream}
    for row, line in zip(strict, lines, strict=False):
        record = json.loads(line)
        assert row.target == record["answer"]
        shown, asked_last = row.prompt.split("<|im_start|>user\nQuestion: ")[1:]
        assert asked_last.startswith(record["question"])
        assert shown.split("\nAnswer:")[0] in train
        assert row.prompt.endswith("<|im_start|>assistant\n")
    for name in ("strict-match", "flexible-extract"):
        values = [row.value for row in found.rows if row.filter == name and row.value is not None]
        assert sum(values) / len(values) == found.aggregated["gsm8k"][f"exact_match,{name}"]
    assert found.versions == {"gsm8k": "3.0"}
    assert found.num_fewshot == {"gsm8k": 1}
    assert capfd.readouterr() == ("", "")


def test_rows_say_what_was_asked_answered_and_expected(model: Any, tokenizer: Any, folder: Path) -> None:
    found = run_tasks(settings(folder, "bank_choices", "bank_texts"), harness_model(model, tokenizer, {}, 8), 3)
    records = [json.loads(line) for line in (folder / "bank.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in found.rows if row.task == "bank_choices" and row.metric == "acc"]
    for row, record in zip(rows, records, strict=True):
        assert row.prompt == f"Query: {record['text']}\nIntent:"
        assert row.target == f" {record['label']}"
        assert row.logliks is not None
        likeliest = max(range(6), key=lambda i, values=row.logliks: values[i])  # type: ignore[misc]
        assert row.answer == row.parsed == f" {record['choices'][likeliest]}"
        assert row.value == float(likeliest == record["target"])
    words = [row for row in found.rows if row.metric == "word_perplexity"]
    assert {row.value for row in words} == {None}
    total = sum(row.logliks[0] for row in words if row.logliks)
    count = sum(2 * len(record["text"].split()) for record in records)
    assert found.aggregated["bank_texts"]["word_perplexity,none"] == pytest.approx(math.exp(-total / count))


def test_a_group_reads_local_files_and_names_its_tasks(model: Any, tokenizer: Any, folder: Path) -> None:
    found = run_tasks(settings(folder, "bank", limit=2, num_fewshot=0), harness_model(model, tokenizer, {}, 8), 3)
    assert {row.task for row in found.rows} == {"bank_choices", "gsm8k"}
    assert found.aggregated["bank"]["acc,none"] == found.aggregated["bank_choices"]["acc,none"]


def test_examples_and_samples_follow_the_seed(model: Any, tokenizer: Any, folder: Path) -> None:
    def run(task: str, examples: int, seed: int) -> list[Any]:
        asked = settings(folder, task, num_fewshot=examples, limit=12)
        return run_tasks(asked, harness_model(model, tokenizer, {}, 8), seed).rows

    assert [row.prompt for row in run("bank_choices", 2, 1)] == [row.prompt for row in run("bank_choices", 2, 1)]
    assert [row.prompt for row in run("bank_choices", 2, 1)] != [row.prompt for row in run("bank_choices", 2, 2)]
    assert [row.answer for row in run("bank_sampled", 0, 1)] == [row.answer for row in run("bank_sampled", 0, 1)]
    assert [row.answer for row in run("bank_sampled", 0, 1)] != [row.answer for row in run("bank_sampled", 0, 2)]


def test_progress_adds_up_to_the_requests(model: Any, tokenizer: Any, folder: Path) -> None:
    told: list[int] = []
    engine = harness_model(model, tokenizer, {}, 8, None, told.append)
    run_tasks(settings(folder, "bank_choices", "bank_written", "bank_texts"), engine, 3)
    assert sum(told) == 24 * (2 * 6 + 1 + 1)


def test_the_chat_template_is_the_policys(model: Any, tokenizer: Any) -> None:
    engine = harness_model(model, tokenizer, {}, 8)
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my card?"}]
    assert engine.apply_chat_template(history) == texts(tokenizer, [history], [None], {}, prompt=True)[0]
    begun = [*history, {"role": "assistant", "content": "It is"}]
    assert engine.apply_chat_template(begun, add_generation_prompt=False).endswith("<|im_start|>assistant\nIt is")


def test_third_parties_are_silent_and_offline_and_then_as_before(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]

    def state() -> tuple[object, ...]:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
        return *offline, *(logger.level for logger in loggers), datasets.are_progress_bars_disabled(), sys.stdout

    for owner in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(owner, "HF_HUB_OFFLINE", False)
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    before, seen = state(), []
    engine = harness_model(model, tokenizer, {}, 8, None, lambda count: seen.append(state()))
    run_tasks(settings(folder, "bank_written", limit=1), engine, 3)
    with pytest.raises(UserError):
        run_tasks(settings(folder, "bank_nucleus", limit=1), engine, 3)
    assert [during[:5] for during in seen] == [(True, True, logging.CRITICAL, logging.CRITICAL, True)]
    assert state() == before


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["bank_choice"], {}, r"tasks: lm-eval has no task or group 'bank_choice'; nearest valid name: bank_choices"),
        (["bank_code"], {}, r"tasks: bank_code runs code that the model writes"),
        (["bank_pictures"], {}, r"tasks: bank_pictures shows pictures or sounds; expected a task of text alone"),
        (["bank_imports"], {}, r"tasks: bank_imports needs a package that isn't installed: .*nowhere"),
        (["bank_nucleus"], {}, r"tasks: bank_nucleus generates with top_p=0\.9; expected greedy answers"),
        (["gsm8k"], {"data": {}}, r"tasks: gsm8k can't be loaded: .*files that evaluate\.harness\.data names"),
        (["gsm8k"], {"data": {"gsm8k": {"test": LOCAL["test"]}}}, r"data\.gsm8k: the task reads the split 'train'"),
        (
            ["gsm8k"],
            {"data": {"gsm8k": LOCAL | {"test": "no.csv"}}},
            r"data\.gsm8k\.test: expected a file .*no\.csv",
        ),
        (["bank_choices"], {"include_path": "nowhere"}, r"include_path: .*nowhere is no folder"),
    ],
)
def test_mistakes_are_told(
    model: Any, tokenizer: Any, folder: Path, tasks: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=r"^evaluate\.harness\." + message):
        run_tasks(settings(folder, *tasks, **changes), harness_model(model, tokenizer, {}, 8), 3)


def test_sequences_that_cannot_fit_are_told(model: Any, tokenizer: Any, folder: Path) -> None:
    with pytest.raises(UserError, match=r"bank_written asks for 16 new tokens; the model takes 16 in all"):
        run_tasks(settings(folder, "bank_written"), harness_model(model, tokenizer, {}, 8, 16), 3)
    with pytest.raises(UserError, match=r"a continuation of \d tokens is longer than the 2 that the model takes"):
        run_tasks(settings(folder, "bank_choices"), harness_model(model, tokenizer, {}, 8, 2), 3)


def test_the_extra_is_named_where_lm_eval_is_missing(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = harness_model(model, tokenizer, {}, 8)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: harness_model(model, tokenizer, {}, 8), lambda: run_tasks(settings(folder), engine, 3)):
        with pytest.raises(UserError, match=r'tasks: needs lm-eval; pip install "tunesmith\[eval\]"'):
            call()
