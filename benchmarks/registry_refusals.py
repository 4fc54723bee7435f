"""Versions that must not be promoted: each must exit 3, name its rule, and leave the alias where it was.

One version is trained, evaluated, packaged and promoted for real, on a random model of 0.4 M parameters. Each case is
that version with one thing wrong, sealed and registered anew, so that nothing but its rule can refuse it; its papers
(verdicts, parity, dates, a clean report) are written as `package` writes them. `promote` is the launcher's own, in this
process.
"""

import contextlib
import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.tracking import MlflowClient

from benchmarks import random_model
from pipelines import __main__ as launcher
from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.release import seal
from pipelines.tracking import moves, registry
from pipelines.tracking.copying import Registry
from pipelines.tracking.registry import Version
from pipelines.tracking.store import create_database
from pipelines.tracking.who import signed

NAME, ALIAS = "refused", "staging"
ROWS = 400
REFUSED = 3
METRICS = {
    "eval/correctness/accuracy": 0.9,
    "eval/correctness/accuracy_vs_base_low": 0.5,
    "eval/refusal/decline_rate": 0.9,
    "eval/refusal/over_refusal_rate": 0.01,
}
INTENTS = ("card_arrival", "exchange_rate", "age_limit", "change_pin")
CARD = "capability: c\nlabelled_by: l\nindependence: i\nproduction: p\nlimits: l\nversion: '1'\ndate: '2026-11-26'\n"
TIE = "gate.compare.as_good_as_incumbent.ask=superior"
EXPORT = "+gate.exports.int8={max_loss: 0.01, reason: phones}"
ABOVE = "+gate.rules.more={metric: eval/more, bound: above, value: 0.0, reason: asked}"

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """What is wrong, the rule that must say so, and how the wrong version is made."""

    name: str
    rule: str
    tags: dict[str, str | None] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    change: Change | None = None
    after: str | None = None  # a file of which a byte is changed after the version was registered
    wrong_rows: int = 40
    overrides: tuple[str, ...] = ()


def _remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def _write(file: str, content: bytes) -> Change:
    def write(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return write


def _other_adapter(folder: Path) -> None:
    """A whole adapter, its manifest in order, that isn't the one that was evaluated."""
    (manifest,) = folder.glob("artifacts/*/manifest.json")
    told = products.load(manifest.parent)
    weights = manifest.parent / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    again = manifest.parent.with_name("again")
    products.publish(manifest.parent, again, told.kind, told.made_by, told.about)
    again.rename(manifest.parent)


def _other_papers(part: str, value: dict[str, str]) -> Change:
    def write(folder: Path) -> None:
        path = folder / "artifacts/release/lineage.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))

    return write


CASES = (
    Case("worse than asked", "accuracy", metrics={"eval/correctness/accuracy": 0.5}),
    Case("no better than its base", "better_than_base", metrics={"eval/correctness/accuracy_vs_base_low": 0.0}),
    Case("worse than the incumbent", "as_good_as_incumbent", wrong_rows=80),
    Case("equal where superiority is asked", "as_good_as_incumbent", overrides=(TIE,)),
    Case("judged on other held-out rows", "as_good_as_incumbent", tags={"heldout.digest": "others"}),
    Case("no verdicts", "as_good_as_incumbent", change=_remove("artifacts/release/verdicts.parquet")),
    Case("declines too little", "declines", metrics={"eval/refusal/decline_rate": 0.1}),
    Case("declines too much", "over_refusal", metrics={"eval/refusal/over_refusal_rate": 0.3}),
    Case("a metric that isn't there", "declines", metrics={"eval/refusal/decline_rate": None}),
    Case("a metric that is NaN", "accuracy", metrics={"eval/correctness/accuracy": float("nan")}),
    Case("a metric that is infinite", "more", metrics={"eval/more": float("inf")}, overrides=(ABOVE,)),
    Case("contaminated", "contamination", tags={"contamination": "present"}),
    Case("no contamination report", "contamination", tags={"contamination": None}),
    Case("base without an allowed licence", "license_base", tags={"base.license": "LicenseRef-Closed"}),
    Case("data without an allowed licence", "license_data", tags={"rows.licenses": "CC0-1.0, unknown"}),
    Case("data without any licence", "license_data", tags={"rows.licenses": None}),
    Case("teacher without an allowed licence", "license_teachers", tags={"teachers.licenses": "MIT, closed"}),
    Case("unevaluated", "evaluated", change=_remove("artifacts/scores.json")),
    Case("evaluated on another adapter", "own_files", change=_other_adapter),
    Case("evaluated on another base", "own_files", tags={"base.revision": "sha256:other"}),
    Case("another template", "own_files", change=_other_papers("template", {"digest": "other"})),
    Case("evaluated long ago", "fresh", tags={"evaluated.at": "2020-01-01T00:00:00+00:00"}),
    Case("evaluated nobody knows when", "fresh", tags={"evaluated.at": None}),
    Case("parity failed", "parity", tags={"parity.passed": "false"}),
    Case("no parity", "parity", change=_remove("artifacts/release/parity.json")),
    Case("vLLM can't load it", "vllm", tags={"serving.vllm": "false: DoRA"}, overrides=("gate.serving.vllm=true",)),
    Case("an export that wasn't judged", "export_int8", overrides=(EXPORT,)),
    Case("an export that loses", "export_int8", tags={"export.int8": '{"accuracy": 0.8}'}, overrides=(EXPORT,)),
    Case("a byte of the adapter", "integrity", after="artifacts/*/adapter_model.safetensors"),
    Case("a byte of the code", "integrity", after="code/pipelines/errors.py"),
    Case("a byte of the card", "integrity", after="artifacts/release/README.md"),
    Case("a byte of the scores", "integrity", after="artifacts/scores.json"),
    Case("a byte of MLmodel", "integrity", after="MLmodel"),
    Case("a byte of the seal", "integrity", after="seal.json"),
    Case("a pickle by its name", "integrity", change=_write("artifacts/weights.bin", b"x")),
    Case("a pickle by its bytes", "integrity", change=_write("artifacts/notes.txt", b"\x80\x05\x95")),
    Case("a byte, forced", "integrity", after="code/pipelines/errors.py", overrides=("force=true", "reason=tonight")),
    Case("another holder than expected", "race", overrides=("expect=999",)),
    Case("another holder, forced", "race", overrides=("expect=999", "force=true", "reason=tonight")),
)


def measure(temporary: Path) -> dict[str, Any]:
    """`refusals_ok` of `refusals_total` exit 3, name their rule on stderr and in the tags, and leave the alias."""
    bench = _Bench(temporary)
    sound = bench.register(Case("sound", ""))
    bench.expect_promoted(sound)
    refused = [bench.is_refused(case) for case in CASES] + [bench.is_refused_in_a_race()]
    # What was refused so often was refused for its faults: without one it passes.
    bench.expect_promoted(bench.register(Case("sound again", "")))
    return {"refusals_ok": sum(refused), "refusals_total": len(refused)}


class _Bench:
    """A store with one packaged version, and what is made of it."""

    def __init__(self, temporary: Path) -> None:
        self.folder, self.count = temporary, 0
        self.store = f"sqlite:///{temporary / 'mlflow.db'}"
        create_database(self.store)
        mlflow.set_tracking_uri(self.store)
        self.client = MlflowClient()
        self._package()
        self.source = registry.find(f"models:/{NAME}@candidate")
        self.experiment = self.client.get_experiment_by_name("tunesmith").experiment_id

    def _package(self) -> None:
        model = self.folder / "model"
        random_model.write(
            model, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=2, head_dim=32
        )
        for name, part, count in (("train", "train", 8), ("heldout", "test", 4)):
            with (PROJECT / f"data/banking77/{part}.csv").open(encoding="utf-8", newline="") as stream:
                records = list(csv.DictReader(stream))
            with (self.folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["query", "label"])
                for intent in INTENTS:
                    texts = [record["text"].strip() for record in records if record["category"] == intent][:count]
                    writer.writerows([text, intent] for text in texts)
        (self.folder / "card.yaml").write_text(CARD)
        for stage in ("prepare", "sft", "evaluate", "package"):
            if code := self.run(stage):
                raise RuntimeError(f"{stage} ended with {code}: {self.said}")

    def run(self, stage: str, *overrides: str) -> int:
        """The launcher's exit code; what it wrote to stderr is kept in `said`."""
        folder = self.folder
        small = [
            "task=my_routing",
            f"task.sources.train.path={folder / 'train.csv'}",
            f"task.sources.heldout.path={folder / 'heldout.csv'}",
            "task.sources.train.license=CC0-1.0",
            "task.sources.heldout.license=CC0-1.0",
            "task.decline_label=age_limit",
            f"task.card={folder / 'card.yaml'}",
            "prepare.validation_share=0.2",
            f"model.id={folder / 'model'}",
            "sft.trainer.max_steps=2",
            "sft.trainer.per_device_train_batch_size=4",
            "evaluate.max_new_tokens=4",
            "evaluate.resamples=100",
            "evaluate.robustness.rows=null",
            "evaluate.red_team.wraps=null",
            "evaluate.cost.rows=null",
            "tracking.system_metrics=false",
            f"tracking.uri={self.store}",
            *(f"paths.{name}={folder / name}" for name in ("rows", "adapters", "outputs")),
            f"package.registered_model={NAME}",
        ]
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = launcher.run([stage, *small, *overrides])
        self.said = told.getvalue()
        return code

    def register(self, case: Case) -> Version:
        """A version of its own for a case."""
        self.count += 1
        folder = Registry().download(self.source, self.folder / f"case-{self.count}")
        self._write_papers(folder, case)
        if case.change:
            case.change(folder)
        digest = seal.write(folder)
        model = self.client.create_logged_model(self.experiment, "case", model_type="adapter")
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        tags = {
            **{name: value for name, value in self.source.tags.items() if not name.startswith("gate.")},
            **{"base.license": "Apache-2.0", "contamination": "clean", "parity.passed": "true", "serving.vllm": "true"},
            "template.digest": "template",
            "evaluated.at": datetime.now(UTC).isoformat(),
            **case.tags,
            seal.DIGEST_TAG: digest,
        }
        kept = {name: value for name, value in tags.items() if value is not None}
        made = self.client.create_model_version(NAME, f"models:/{model.model_id}", tags=kept, model_id=model.model_id)
        shutil.rmtree(folder)
        version = Version(NAME, str(made.version), kept)
        if case.after:
            self._flip(version, case.after)
        return version

    def _write_papers(self, folder: Path, case: Case) -> None:
        papers = folder / "artifacts/release"
        papers.mkdir(exist_ok=True)
        metrics = {name: value for name, value in (METRICS | case.metrics).items() if value is not None}
        tags = self.source.tags
        evaluated = {"adapter": tags["adapter.digest"], "revision": tags["base.revision"]}
        (folder / "artifacts/scores.json").write_text(json.dumps({"metrics": metrics, "evaluated": evaluated}))
        (papers / "parity.json").write_text(json.dumps({"passed": True, "forms": {}}))
        lineage = {
            "base": {"revision": tags["base.revision"]},
            "adapter": {"digest": tags["adapter.digest"]},
            "template": {"digest": "template"},
        }
        (papers / "lineage.json").write_text(json.dumps(lineage))
        (papers / "README.md").write_text(f"# case {self.count}\n")
        correct = [number >= case.wrong_rows for number in range(ROWS)]
        columns = {"row_id": [f"r{n}" for n in range(ROWS)], "group": pa.nulls(ROWS, pa.string()), "correct": correct}
        pq.write_table(pa.table(columns), papers / "verdicts.parquet")

    def _flip(self, version: Version, pattern: str) -> None:
        """Changes one bit of a file in the store."""
        location = self.client.get_model_version_download_uri(version.name, version.number)
        (path,) = Path(location.removeprefix("file://")).glob(pattern)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    def expect_promoted(self, version: Version) -> None:
        """Raises RuntimeError where a version without fault is refused: then refusals would say nothing."""
        if self.run("promote", f"model={version.uri}") or self.held() is None:
            raise RuntimeError(f"a version without fault was refused: {self.said}")

    def held(self) -> str | None:
        return moves.holder_of(self.client, NAME, ALIAS)

    def is_refused(self, case: Case) -> bool:
        version, before = self.register(case), self.held()
        code = self.run("promote", f"model={version.uri}", *case.overrides)
        return self._told(case.name, case.rule, (version, code, before))

    def is_refused_in_a_race(self) -> bool:
        """Another promoter moves the alias while this one copies its bytes: after it looked, before it moves."""
        version, other = self.register(Case("racing", "")), self.register(Case("the other", ""))
        copied, before = Registry.copied, self.held()

        def slow(there: Registry, name: str, folder: Path, source: Version) -> Version:
            told: dict[str, str | None] = {"alias": ALIAS, "from": before, "to": other.number, "kind": "promote"}
            moves.move(self.client, NAME, told | signed("", None))
            return copied(there, name, folder, source)

        Registry.copied = slow  # type: ignore[method-assign, assignment]
        try:
            code = self.run("promote", f"model={version.uri}")
        finally:
            Registry.copied = copied  # type: ignore[method-assign]
        return self._told("racing", "race", (version, code, other.number))

    def _told(self, name: str, rule: str, found: tuple[Version, int, str | None]) -> bool:
        version, code, before = found
        failed = self.said.rpartition(" fails ")[2].strip().split(", ")
        tags = registry.find(version.uri).tags
        ok = (
            code == REFUSED
            and failed == [rule]
            and tags.get("gate.result") == f"refused for {ALIAS}"
            and tags.get(f"gate.{rule}", "").startswith("FAIL")
            and self.held() == before
        )
        # An unjudged version fails every rule on a metric too.
        if name == "unevaluated":
            ok = code == REFUSED and rule in failed and self.held() == before
        said = f"refused: {name} ({rule})" if ok else f"NOT AS IT SHOULD BE: {name} ({rule}): {self.said}"
        print(f"  {said}", file=sys.stderr, flush=True)
        return ok
