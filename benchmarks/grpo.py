"""The figures of reinforcement learning. `python -m benchmarks.grpo [PART ...]`

Prints a table for people and, as its last line, one JSON object. The parts are gain, arithmetic, sandbox, math,
reference and attacks; without names it measures all of them. Larger models, vLLM and tasks that a model of 3 million
parameters can't learn are left out: they need a GPU, or hours.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import grpo_attacks, grpo_math, grpo_reference, grpo_sandbox
from benchmarks.flow import ACCURACY, about, run_stages
from benchmarks.measure import run_parts

Figures = dict[str, Any]


def gain(temporary: Path) -> Figures:
    """The embedded default, trained on from its SFT adapter: held-out accuracy, paired with that adapter's."""
    timed = run_stages(temporary, ("experiment=reinforce",), ("prepare", "sft", "grpo", "evaluate"))
    metrics = about(temporary / "outputs/scores")["metrics"]
    subjects = about(temporary / "outputs/scores")["subjects"]
    return {
        "gain": round(metrics[f"{ACCURACY}_vs_parent"], 4),
        "gain_low": round(metrics[f"{ACCURACY}_vs_parent_low"], 4),
        "gain_before": round(subjects["parent"][ACCURACY], 4),
        "gain_after": round(subjects["adapter"][ACCURACY], 4),
        "gain_declines_before": round(subjects["parent"]["eval/refusal/decline_rate"], 4),
        "gain_declines_after": round(subjects["adapter"]["eval/refusal/decline_rate"], 4),
        "train_s": round(timed["grpo"], 1),
    }


def arithmetic(temporary: Path) -> Figures:
    """The arithmetic task: the pass rate of a short SFT, and what GRPO makes of it."""
    timed = run_stages(temporary, ("task=arithmetic", "experiment=arithmetic"), ("prepare", "sft", "grpo", "evaluate"))
    subjects = about(temporary / "outputs/scores")["subjects"]
    before, after = (round(subjects[name][ACCURACY], 4) for name in ("parent", "adapter"))
    return {"arithmetic_before": before, "arithmetic_after": after, "arithmetic_train_s": round(timed["grpo"], 1)}


def sandbox(temporary: Path) -> Figures:
    """Programs a second and worker, against one `bwrap` process for each."""
    found = grpo_sandbox.measure()
    return {"sandbox_ratio": found["fresh_over_bwrap_s"], "sandbox_shared_ratio": found["shared_over_bwrap_s"]} | {
        f"sandbox_{name}": value for name, value in found.items()
    }


def math(temporary: Path) -> Figures:
    """The two tiers of the math verifier against math-verify alone, and what bombs, tricks and odd forms come to."""
    found = grpo_math.measure()
    named = {"math_ratio": found.pop("ratio"), "math_disagreements": found.pop("disagreements")}
    alone = ("bombs", "hacks", "odd")
    return named | {name if name.startswith(alone) else f"math_{name}": value for name, value in found.items()}


def reference(temporary: Path) -> Figures:
    """TRL's advantages, clipping and KL against a reference of our own."""
    found = grpo_reference.measure()
    return {f"reference_{name}": value for name, value in found.items()}


def attacks(temporary: Path) -> Figures:
    """Attacking programs in the sandbox."""
    return grpo_attacks.measure()


PARTS: dict[str, Callable[[Path], Figures]] = {
    "gain": gain,
    "arithmetic": arithmetic,
    "sandbox": sandbox,
    "math": math,
    "reference": reference,
    "attacks": attacks,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
