"""lm-eval's tasks over our engine beside its own Hugging Face backend; and what a batch does to an answer.

usage: python -m benchmarks.evaluation_harness agreement|order_differences

Both run in one process with the same model in float32, in turn, each with the batch size that suits it best.
"""

import csv
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Harness
from pipelines.policy.base import load_base, load_tokenizer, pin
from pipelines.policy.chat import Decoding, Generated, generate
from pipelines.policy.template import render
from pipelines.subjects.harness import HarnessResult, HarnessRow, harness_model, run_tasks

SEED = 7
BATCHES = (16, 64)  # lm-eval's "auto" ends at 64 too, after trying that at the model's full length
CHOICES = 15
GSM8K = {"gsm8k": {"train": "data/gsm8k/train.jsonl", "test": "data/gsm8k/test.jsonl"}}
CHOICE_TASK = """\
task: bank_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: TRAIN}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "Query: {{text}}\\nIntent:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{target}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@dataclass(frozen=True)
class Part:
    """A task as both run it, and how many of its examples."""

    name: str
    settings: dict[str, Any]
    limit: int


PARTS = (
    Part("choices", {"tasks": ["bank_choices"], "num_fewshot": 2, "chat_template": False}, 240),
    Part("gsm8k", {"tasks": ["gsm8k"], "num_fewshot": 2, "chat_template": False}, 64),
    Part("gsm8k_chat", {"tasks": ["gsm8k"], "num_fewshot": 2, "chat_template": True}, 64),
)


@dataclass(frozen=True)
class Timed:
    wall_s: float
    cpu_s: float


def agreement() -> dict[str, Any]:
    """Verdicts and likelihoods of both, and how many times as fast ours is.

    Times are by wall and by CPU, each side's the best of its batch sizes; `harness_ratio_min` is the least ratio.
    """
    model, tokenizer = _loaded()
    figures: dict[str, Any] = {}
    found: list[tuple[HarnessResult, HarnessResult]] = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        _write_choices(Path(folder))
        for part in PARTS:
            ours, theirs, times = _side_by_side(part, Path(folder), model, tokenizer)
            found.append((ours, theirs))
            figures |= times
    ratios = [value for name, value in figures.items() if name.endswith("_ratio")]
    pairs = [pair for ours, theirs in found for pair in zip(ours.rows, theirs.rows, strict=True)]
    return {
        "harness_rows": len(pairs),
        "harness_disagreements": sum(one.value != other.value for one, other in pairs),
        "harness_texts_apart": sum(_told(model, tokenizer, one, other) for one, other in pairs),
        "harness_loglik_apart": max(_apart(one, other) for one, other in pairs),
        "harness_ratio_min": min(ratios),
        **figures,
    }


def order_differences() -> int:
    """Rows whose text, number of tokens or end differs between batches of 1, 4 and 16 and a shuffled order."""
    model, tokenizer = _loaded()
    differing = 0
    for texts, limit in ((_queries("test")[::12], 24), (_problems()[:60], 128)):
        asked = [[{"role": "user", "content": text}] for text in texts]
        prompts = render(tokenizer, asked, [None] * len(asked), {}, prompt=True)
        order = random.Random(SEED).sample(range(len(prompts)), len(prompts))
        alone = generate(model, tokenizer, prompts, Decoding(limit), 1)
        found = [generate(model, tokenizer, prompts, Decoding(limit), size) for size in (4, 16)]
        shuffled = generate(model, tokenizer, [prompts[i] for i in order], Decoding(limit), 16)
        found.append([answer for _, answer in sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])])
        differing += sum(len({_seen(run[row]) for run in (alone, *found)}) > 1 for row in range(len(prompts)))
    return differing


def _seen(answer: Generated) -> tuple[str, int, bool]:
    return answer.text, answer.num_tokens, answer.finished


def _loaded() -> tuple[Any, Any]:
    config = compose(["compute.dtype=float32"]).config
    return load_base(pin(config.model), config.adapter, config.compute).eval(), load_tokenizer(config.model)


def _queries(split: str) -> list[str]:
    with (PROJECT / f"data/banking77/{split}.csv").open(encoding="utf-8", newline="") as stream:
        return [record["text"] for record in csv.DictReader(stream)]


def _problems() -> list[str]:
    lines = (PROJECT / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _write_choices(folder: Path) -> None:
    """Banking77 as questions of many choices, and the task over them."""
    labels = json.loads((PROJECT / "data/banking77/categories.json").read_text(encoding="utf-8"))
    drawn = random.Random(SEED)
    for split in ("train", "test"):
        with (PROJECT / f"data/banking77/{split}.csv").open(encoding="utf-8", newline="") as stream:
            records = drawn.sample(list(csv.DictReader(stream)), 400)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
            for record in records:
                others = drawn.sample([label for label in labels if label != record["category"]], CHOICES - 1)
                choices = drawn.sample([record["category"], *others], CHOICES)
                row = {"text": record["text"], "choices": choices, "target": choices.index(record["category"])}
                stream.write(json.dumps(row) + "\n")
    text = CHOICE_TASK.replace("FILE", str(folder / "test.jsonl")).replace("TRAIN", str(folder / "train.jsonl"))
    (folder / "bank_choices.yaml").write_text(text, encoding="utf-8")


def _side_by_side(
    part: Part, folder: Path, model: Any, tokenizer: Any
) -> tuple[HarnessResult, HarnessResult, dict[str, float]]:
    """Both sides' rows, and their times in turn, so that what else the machine does meets both."""
    sides: dict[str, Callable[[int], Any]] = {
        "ours": lambda size: harness_model(model, tokenizer, {}, size),
        "theirs": lambda size: _their_backend(model, tokenizer, size),
    }
    given = {"include_path": str(folder), "data": GSM8K, **part.settings, "limit": part.limit}
    settings = Harness.model_validate(given)
    _run(settings.model_copy(update={"limit": 1}), sides["ours"](1))  # the list of tasks is read once
    results: dict[str, HarnessResult] = {}
    times: dict[str, list[Timed]] = {name: [] for name in sides}
    for size in BATCHES:
        for name, make in sides.items():
            results[name], spent = _run(settings, make(size))
            times[name].append(spent)
    figures: dict[str, float] = {}
    for unit in ("wall", "cpu"):
        ours, theirs = (min(getattr(each, f"{unit}_s") for each in times[name]) for name in ("ours", "theirs"))
        figures |= {f"{part.name}_{unit}_s": round(ours, 2), f"{part.name}_their_{unit}_s": round(theirs, 2)}
        figures[f"{part.name}_{unit}_ratio"] = round(theirs / ours, 2)
    return results["ours"], results["theirs"], figures


def _run(settings: Harness, lm: Any) -> tuple[HarnessResult, Timed]:
    wall, cpu = time.perf_counter(), time.process_time()
    with _no_bars():
        result = run_tasks(settings, lm, SEED)
    return result, Timed(time.perf_counter() - wall, time.process_time() - cpu)


def _their_backend(model: Any, tokenizer: Any, size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    with _no_bars():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)


@contextmanager
def _no_bars() -> Iterator[None]:
    """lm-eval's backend draws its progress, which costs it time and says nothing here."""
    with redirect_stderr(StringIO()):
        yield


def _apart(one: HarnessRow, other: HarnessRow) -> float:
    pairs = zip(one.logliks or (), other.logliks or (), strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def _told(model: Any, tokenizer: Any, one: HarnessRow, other: HarnessRow) -> bool:
    """Whether the answers differ; if so, how near the two tokens are where they part is printed."""
    if one.answer == other.answer:
        return False
    sides = [_tokens(tokenizer, row.prompt + row.answer) for row in (one, other)]
    at = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), None)
    if at is None:
        print(f"{one.task} {one.doc_id}: one answer goes on where the other ends", file=sys.stderr)
    else:
        margin = _margin(model, sides[0][:at], (sides[0][at], sides[1][at]))
        print(f"{one.task} {one.doc_id}: parts at token {at}, logits {margin:.2e} apart", file=sys.stderr)
    return True


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _margin(model: Any, tokens: Sequence[int], pair: tuple[int, int]) -> float:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([list(tokens)[-1000:]])).logits[0, -1]
    return float(logits[pair[0]] - logits[pair[1]])


if __name__ == "__main__":
    print(json.dumps({"agreement": agreement, "order_differences": order_differences}[sys.argv[1]]()))
