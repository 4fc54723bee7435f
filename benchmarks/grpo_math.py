"""The figures of the math verifier: `python -m benchmarks.grpo_math`.

The two-tier verify against math-verify alone: the same answers, in this process, on CPU time, no pool. math-verify is
asked as TRL's reward asks it (the gold answer and the answer parsed, then compared, its timeouts off), once with the
gold answer parsed each time and once with it parsed beforehand; the ratio is to the latter, the quicker one. The bombs
and the hacks go through the real workers. Prints a table and, as its last line, one JSON object.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.tasks import resolve_verify
from pipelines.verification import verification
from tests.tasks.math_cases import SETS, Case, bombs, cases, row_of

NUM_ANSWERS = 3000
SECONDS = 2.0  # of one bomb: it is asked twice where it has no verdict
FORMS = (
    *("#### {}",) * 3,
    "#### {}.00",
    "\\boxed{{{}}}",
    "\\[\\boxed{{{} \\text{{ dollars}}}}\\]",
    "The answer is $\\boxed{{{}}}$.",
    "The answer is {}.",
    "**Answer:** ${}",
    "So the final answer is **{}**.",
)
Check = Callable[[str, Row], bool]


def measure() -> dict[str, float]:
    """Checks a CPU-second of both, their ratio, and how labelled answers, bombs and hacks fare."""
    config = compose(["task=gsm8k", "task.verify=math"]).config
    verify = resolve_verify(config.task)
    labelled = [case for name in SETS for case in cases(name)]
    answers = model_like(NUM_ANSWERS)
    found = _speeds(lambda text, row: verify(text, row).correct, answers)
    found |= {
        "labelled": float(len(labelled)),
        "disagreements": float(sum(verify(case.completion, case.row).correct != case.right for case in labelled)),
        "math_verify_disagreements": float(sum(_alone(case.completion, case.row) != case.right for case in labelled)),
    }
    relaxed = config.verifier.model_copy(update={"max_failed": 1.0})
    with verification(config.task, relaxed) as verified:

        def rewarded(given: Sequence[Case]) -> int:
            outcomes = verified.check([case.completion for case in given], [case.row for case in given])
            return sum(outcome.verdict is not None and outcome.verdict.correct for outcome in outcomes)

        odd, tempting = cases("odd"), cases("tempting")
        found |= {
            "hacks": float(len(tempting)),
            "hacks_rewarded": float(rewarded(tempting)),
            "odd_right": float(len(odd)),
            "odd_right_rewarded": float(rewarded(odd)),
        }
        texts, ok, slowest = bombs(), 0, 0.0
        row = row_of(r"\frac{x^2+1}{2}")
        for text in texts.values():
            begun = time.perf_counter()
            (outcome,) = verified.check([text], [row])
            taken = time.perf_counter() - begun
            slowest = max(slowest, taken)
            ok += taken < SECONDS and not (outcome.verdict is not None and outcome.verdict.correct)
        with heartbeat() as gaps:
            verified.check(list(texts.values()), [row] * len(texts))
        kinds = verified.counts.kinds
    return found | {
        "bombs": float(len(texts)),
        "bombs_ok": float(ok),
        "bombs_slowest_s": slowest,
        "bombs_largest_gap_s": max(gaps, default=0.0),
        "bombs_without_verdict": float(kinds.total()),
    }


def model_like(count: int, seed: int = 0) -> list[tuple[str, Row]]:
    """Answers to GSM8K's test questions as models give them: right, wrong, and in other forms, half of them right."""
    draw = random.Random(seed)
    lines = (PROJECT / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for number in range(count):
        solution = json.loads(lines[number % len(lines)])["answer"]
        steps, _, gold = solution.rpartition("\n#### ")
        said = gold if draw.random() < 0.5 else f"{int(gold.replace(',', '')) + draw.randint(1, 30):,}"
        found.append((f"{steps}\n{draw.choice(FORMS).format(said)}", row_of(solution)))
    return found


def _speeds(two_tier: Check, answers: Sequence[tuple[str, Row]]) -> dict[str, float]:
    from math_verify import parse

    golds = {row.answer: parse(row.answer, parsing_timeout=None) for _, row in answers}
    some = answers[: len(answers) // 6]  # it takes its time

    def cached(text: str, row: Row) -> bool:
        return _compared(golds[row.answer], text)

    _per_second(two_tier, some)
    found = {
        "two_tier_per_s": _per_second(two_tier, answers),
        "math_verify_per_s": _per_second(_alone, some),
        "math_verify_gold_cached_per_s": _per_second(cached, some),
    }
    return found | {"ratio": found["two_tier_per_s"] / found["math_verify_gold_cached_per_s"]}


def _per_second(check: Check, answers: Sequence[tuple[str, Row]]) -> float:
    begun = time.process_time()
    for text, row in answers:
        check(text, row)
    return len(answers) / (time.process_time() - begun)


def _alone(text: str, row: Row) -> bool:
    """What math-verify says by itself, of the gold answer as GSM8K writes it or in a box."""
    from math_verify import parse

    gold = row.answer.rpartition("####")[2].strip()
    return _compared(parse(gold if gold.startswith("\\boxed") else f"\\boxed{{{gold}}}", parsing_timeout=None), text)


def _compared(gold: Sequence[object], text: str) -> bool:
    from math_verify import parse, verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return bool(verify(list(gold), parse(text, parsing_timeout=None), timeout_seconds=None))


@contextmanager
def heartbeat() -> Iterator[list[float]]:
    """The gaps between beats of a thread that beats every 50 ms."""
    gaps: list[float] = []
    ended = threading.Event()

    def beat() -> None:
        last = time.monotonic()
        while not ended.wait(0.05):
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield gaps
    finally:
        ended.set()
        thread.join()


def main() -> None:
    found = measure()
    for name, value in found.items():
        print(f"{name:32} {value:,.2f}".removesuffix(".00"))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
