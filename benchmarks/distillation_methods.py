"""Every method of distillation on the embedded default: held-out accuracy, time and tokens, beside more of SFT alone.

The student is `tiny_quarter`, the teacher the tuned default. Methods that go on from the student's SFT (two epochs) and
those that begin with the base see the rows as often as `EPOCHS` says, which plain SFT does too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.flow import ACCURACY, about, run_stages

EPOCHS = 4
STUDENT = "model=tiny_quarter"
PROMPT = 'distill.prompt="Name the queue."'
# What is run for a method, and with what; `generate` writes into the method's own folder.
METHODS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "sft": (("sft",), ()),
    "sft_longer": (("sft",), (f"sft.trainer.num_train_epochs={EPOCHS}",)),
    "on_policy": (("distill",), ("distillation=on_policy", f"distill.trainer.num_train_epochs={EPOCHS}")),
    "prompted": (("distill",), ("distillation=prompted", PROMPT, "distill.trainer.num_train_epochs=1")),
    "cross_tokenizer": (
        ("distill",),
        ("distillation=cross_tokenizer", "distill.trainer.learning_rate=1e-3", "distill.trainer.max_steps=280"),
    ),
    "sequence": (("generate", "distill"), ("distillation=sequence", f"distill.trainer.num_train_epochs={EPOCHS}")),
    "stored_logits": (
        ("generate", "distill"),
        ("distillation=stored_logits", f"distill.trainer.num_train_epochs={EPOCHS}"),
    ),
}


def measure(temporary: Path, names: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Figures by method, `<method>_accuracy` and so on; differences are paired, with the student's own SFT."""
    run_stages(temporary / "teacher", (), ("prepare", "sft"))
    (rows,) = (temporary / "teacher/rows").glob("*")
    (teacher,) = (temporary / "teacher/adapters").glob("*")
    own = [STUDENT, f"sft.rows={rows}", f"evaluate.rows={rows}", f"generate.rows={rows}", f"distill.rows={rows}"]
    run_stages(temporary / "sft", own, ("sft",))
    (start,) = (temporary / "sft/adapters").glob("*")
    given = [*own, "teacher.kind=adapter", f"teacher.at={teacher}", f"distill.adapter={start}"]
    given.append(f"+evaluate.subjects.own={{kind: adapter, at: {start}}}")
    figures: dict[str, Any] = {}
    for name in names:
        figures |= {
            f"{name}_{key}": value for key, value in _of_method(temporary / f"method_{name}", name, given).items()
        }
    return figures


def _of_method(folder: Path, name: str, given: Sequence[str]) -> dict[str, Any]:
    stages, overrides = METHODS[name]
    words = [*given, *overrides]
    timed = dict(run_stages(folder, words, stages[:1]))
    if len(stages) > 1:
        (written,) = (folder / "rows").glob("*-by-*")
        words.append(f"distill.generated={written}")
        timed |= run_stages(folder, words, stages[1:])
    (made,) = (folder / "adapters").glob("*")
    run_stages(folder, [*words, f"evaluate.adapter={made}"], ("evaluate",))
    metrics: Mapping[str, Any] = about(folder / "outputs/scores")["metrics"]
    return {
        "accuracy": round(metrics[ACCURACY], 4),
        "vs_sft": [round(metrics[f"{ACCURACY}_vs_own{end}"], 4) for end in ("", "_low", "_high")],
        "seconds": {stage: round(seconds) for stage, seconds in timed.items()},
        "tokens": _tokens(made),
    }


def _tokens(adapter: Path) -> int | None:
    """Tokens that the student read in training, as TRL counts them."""
    history = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    counted = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    return int(counted[-1]) if counted else None
