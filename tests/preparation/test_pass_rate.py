"""Rows are kept by how often a real model answers them right, and the rates are the samples' own."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.policy.base import load_tokenizer
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.template import render
from pipelines.prepare import prepare
from tests.preparation.conftest import Prepare

# The shipped base model says these numbers often, some times, and never.
SUMS = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in (1, 2, 3) for b in (1, 2, 5)]
NEVER = {"prompt": "What is 77 + 88?", "answer": "not a number at all"}
OFF = ["prepare.duplicates.near=off", "prepare.contamination.near=false", "prepare.validation_share=0"]
BAND = ["prepare.pass_rate.samples=8", "prepare.pass_rate.max_new_tokens=8"]
HELD = [{"prompt": "What is 4 + 4?", "answer": "8"}]


def test_rows_outside_the_band_go_with_their_rate(prepared: Prepare) -> None:
    verify = ["task.verify=exact", *OFF]
    before = prepared([*SUMS, NEVER], HELD, *verify, task="my_conversations")
    done = prepared([*SUMS, NEVER], HELD, *verify, *BAND, "prepare.pass_rate.low=0.1", task="my_conversations")
    spread = done.summary["pass_rate"]["rows_by_passed"]
    assert sum(spread.values()) == len(SUMS) + 1 == len(before.rows("train"))
    removed = {each["text"]: each["reason"] for each in done.removed()}
    assert removed[NEVER["prompt"]] == "pass rate: 0 of 8"
    kept = sum(count for passed, count in spread.items() if 1 <= int(passed) <= 7)
    assert len(done.rows("train")) == kept
    assert 0 < kept < len(SUMS) + 1
    assert len(done.rows("heldout")) == 1


def test_the_same_seed_gives_the_same_rows(prepared: Prepare) -> None:
    options = ["task.verify=exact", *OFF, *BAND, "prepare.pass_rate.low=0.0"]
    first, second = (prepared(SUMS, HELD, *options, task="my_conversations") for _ in range(2))
    assert first.summary["pass_rate"] == second.summary["pass_rate"]
    # Two seeds may share the counts of so few rows by chance.
    others = [prepared(SUMS, HELD, *options, f"seed={seed}", task="my_conversations") for seed in (7, 8, 9)]
    counts = [other.summary["pass_rate"]["rows_by_passed"] for other in others]
    assert any(found != first.summary["pass_rate"]["rows_by_passed"] for found in counts)


def test_samples_vary_and_follow_their_seed() -> None:
    profile = compose([]).config.model
    model = AutoModelForCausalLM.from_pretrained(PROJECT / "data/models/tiny", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(profile)
    asked = [[{"role": "user", "content": "Tell me about my card."}]] * 12
    prompts = render(tokenizer, asked, [None] * 12, {}, prompt=True)
    texts = [
        [answer.text for answer in generate(model, tokenizer, prompts, Decoding(6, 1.0, seed), batch_size=12)]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 3
    cold = [answer.text for answer in generate(model, tokenizer, prompts, Decoding(6, 0.01, 1), batch_size=12)]
    greedy = [answer.text for answer in generate(model, tokenizer, prompts, Decoding(6), batch_size=12)]
    assert cold == greedy


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in SUMS))
    paths = [f"task.sources.{name}.path={tmp_path / name}.jsonl" for name in ("train", "heldout")]
    given = ["task=my_conversations", "task.verify=exact", *OFF, *BAND, *paths]
    with pytest.raises(UserError, match=r"nowhere: no manifest\.json; expected a folder that a stage has finished"):
        prepare(compose([*given, f"prepare.pass_rate.adapter={tmp_path}/nowhere"]).config, tmp_path / "rows")
