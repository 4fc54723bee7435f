"""version -> the same stages run again from what it says of itself, and held against what it holds."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.chosen import chosen
from pipelines.config.compose import load_resolved
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.dataset.read import content_digest
from pipelines.errors import Refused, UserError
from pipelines.evaluation import record as table
from pipelines.given import endpoints, looked_up
from pipelines.policy.base import local_folder, pin
from pipelines.product import Product, folder_files
from pipelines.progress import say
from pipelines.rebuild import fresh, link_files, order, run_here, run_there, with_last
from pipelines.release import ancestry, comparison, sameness
from pipelines.release.ancestry import Ancestry
from pipelines.release.checkout import checkout, knows
from pipelines.release.comparison import Files, Scores
from pipelines.release.sameness import Condition, Here
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run, started
from pipelines.tracking.source import source_tags

IDENTICAL, WITHIN, DIFFERS = "identical", "within the interval", "differs"


@dataclass
class Attempt:
    """A reproduction as it goes on: of which version, with what, where, and what was found."""

    config: Config  # the version's own
    asked: Config  # this command's
    version: Version
    files: Path  # the version's, and the folder of the adapter among them
    adapter: Path
    origin: Ancestry
    folder: Path
    run: Run
    code: Path | None = None  # of another commit
    made: dict[str, Product] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def make(self, config: Config, stage: str) -> Product:
        """The stage's product, made in the fresh folder unless it was already."""
        if stage not in self.made:
            here = self.code is None
            made = run_here(config, stage, self.made) if here else run_there(config, stage, self._code(), self.run.id)
            self.made[stage] = made
        return self.made[stage]

    def _code(self) -> Path:
        if self.code is None:
            raise AssertionError("this code is meant")
        return self.code


def act(config: Config) -> None:
    """Makes the version again and records how it compares. Raises Refused where it isn't the same."""
    version = chosen(config, config.reproduce.model, "reproduce.model")
    adapter, _ = registry.contents(version)
    files = registry.files(version)
    came_from = ancestry.read(files, version.uri)
    say(f"reproduce: {version.uri}, made by {came_from.adapter['stage']} in run {came_from.adapter['run']}")
    with started("reproduce", {"stage": "reproduce", "version": version.uri}) as run:
        run.file(files / ancestry.CONFIG)
        folder = PROJECT / config.paths.outputs / "reproduction" / f"{version.name}-{version.number}-{run.id[:8]}"
        own = load_resolved(str(files / ancestry.CONFIG)).config
        own = fresh(with_last(own, came_from.adapter["stage"]), folder, config.tracking)
        attempt = Attempt(own, config, version, files, adapter, came_from, folder, run)
        with _code(attempt):
            _check(attempt)
            result, told = _compared(attempt)
        _record(attempt, result, told)
    say(f"reproduce: {version.uri} {told} (run {run.id})")


@contextlib.contextmanager
def _code(attempt: Attempt) -> Iterator[None]:
    """Where another commit made the version and this repository holds it, its code for the block."""
    came_from, here = attempt.origin, _here(attempt)
    if sameness.same_code(came_from, here) or came_from.dirty or not here.known_commit:
        yield
        return
    with checkout(str(came_from.commit)) as code:
        link_files(attempt.config, code)
        attempt.code = code
        yield


def _here(attempt: Attempt) -> Here:
    tags = source_tags()
    model = _at(attempt, "id", attempt.config.model)
    folder = local_folder(model)
    return Here(
        commit=tags.get("git.commit"),
        dirty=tags.get("git.dirty") == "true",
        code=tags["code.digest"],
        lock=tags["lock.digest"],
        libraries={name.removeprefix("version."): tags[name] for name in tags if name.startswith("version.")},
        base=pin(model).revision,
        base_files=folder_files(folder) if folder else {},
        sources={
            name: content_digest(_at(attempt, "path", source)) for name, source in attempt.config.task.sources.items()
        },
        known_commit=knows(attempt.origin.commit),
    )


def _at(attempt: Attempt, name: str, block: Any) -> Any:
    """The block with the relative path in its field `name` found in the other commit's tree, where it runs there."""
    given = getattr(block, name)
    if attempt.code is None or given is None or not (attempt.code / given).exists():
        return block
    return block.model_copy(update={name: str(attempt.code / given)})


def _check(attempt: Attempt) -> None:
    """Tells what is the same and what isn't. Raises Refused where something differs that isn't allowed to."""
    stages = order(attempt.config, attempt.origin.adapter["stage"])
    attempt.config, notes = looked_up(attempt.config, attempt.origin, stages)
    found = sameness.conditions(attempt.origin, _here(attempt), endpoints(attempt.config, stages))
    allowed = attempt.asked.reproduce.allow
    for condition in found:
        for line in condition.differs:
            say(f"  {'allowed' if condition.name in allowed else 'DIFFERS'}  {condition.name}: {line}")
        if not condition.differs:
            say(f"  same     {condition.name}: {condition.told}")
    for note in notes:
        say(f"  {note}")
    attempt.found["conditions"] = [asdict(condition) for condition in found]
    attempt.found["notes"] = notes
    if different := [condition for condition in found if condition.differs and condition.name not in allowed]:
        _write(attempt, "not tried")
        raise Refused(_cant(attempt.version, different))


def _cant(version: Version, different: list[Condition]) -> str:
    told = "; ".join(f"{condition.name}: {', '.join(condition.differs)}" for condition in different)
    names = ",".join(condition.name for condition in different)
    return f"{version.uri} can't come out the same: {told} (reproduce.allow=[{names}] goes on all the same)"


def _compared(attempt: Attempt) -> tuple[str, str]:
    """The result and what is said of it: rows first, then the adapter's files, then the verdicts."""
    stages = order(attempt.config, attempt.origin.adapter["stage"])
    for stage in stages:
        made = attempt.make(attempt.config, stage)
        if stage == "prepare" and (different := _rows(attempt, made)):
            return DIFFERS, different
    adapter = attempt.made[stages[-1]]
    compared = comparison.files(ancestry.manifest_files(attempt.adapter), ancestry.manifest_files(adapter.folder))
    attempt.found["adapter"] = {"digest": adapter.digest, **asdict(compared)}
    for name in compared.same:
        say(f"  same     {name}")
    for name in compared.differ:
        say(f"  DIFFERS  {name}")
    if compared.identical and attempt.asked.reproduce.judge == "differing":
        return IDENTICAL, f"is reproduced: identical, {len(compared.same)} files of the adapter bit for bit"
    return _judged(attempt, compared, _scores(attempt, adapter))


def _rows(attempt: Attempt, made: Product) -> str | None:
    """What differs of the rows, None where they are the same or sources may differ."""
    attempt.found["rows"] = {"then": attempt.origin.rows, "now": made.digest}
    if made.digest == attempt.origin.rows:
        say(f"  same     rows {sameness.short(made.digest)}")
        return None
    now = json.loads(made.file("summary.json").read_text(encoding="utf-8"))["sources"]
    changed = [
        str(one["name"])
        for one in attempt.origin.sources
        if one.get("sha256") and now.get(one["name"], {}).get("sha256") != one["sha256"]
    ]
    why = f"sources {', '.join(changed)}" if changed else "its sources are the same, what was made of them isn't"
    say(f"  DIFFERS  rows: {sameness.short(attempt.origin.rows)} then, {sameness.short(made.digest)} now ({why})")
    return None if "sources" in attempt.asked.reproduce.allow else f"differs: its rows ({why}), so nothing was trained"


def _scores(attempt: Attempt, adapter: Product) -> Scores | str:
    """The new adapter's verdicts against the version's, or why they can't be paired."""
    named = {"adapter": str(adapter.folder)}
    if attempt.made.get("prepare"):
        named["rows"] = str(attempt.made["prepare"].folder)
    settings = attempt.config.evaluate
    config = attempt.config.model_copy(update={"evaluate": settings.model_copy(update=named)})
    for stage in order(config, "evaluate"):
        attempt.make(config, stage)
    scored = attempt.made["evaluate"]
    heldout, then = scored.about["heldout"]["digest"], attempt.origin.scores["heldout"]
    if heldout != then:
        return f"held-out rows {sameness.short(then)} then, {sameness.short(heldout)} now"
    if not (attempt.files / ancestry.VERDICTS).is_file():
        raise UserError(f"{attempt.version.uri}: expected {ancestry.VERDICTS} in it, to compare row by row")
    records, _ = table.read(scored.file("answers.parquet"))
    found = table.of(records, table.HELDOUT, scored.about["candidate"])
    compared = comparison.scores(attempt.files / ancestry.VERDICTS, found, settings.resamples, config.seed)
    return compared or "no held-out row has a verdict then and now"


def _judged(attempt: Attempt, files: Files, scores: Scores | str) -> tuple[str, str]:
    """The result where verdicts were asked for."""
    differ = f"{', '.join(files.differ)} differ" if files.differ else "every file of the adapter is the same"
    if isinstance(scores, str):
        attempt.found["scores"] = {"why": scores}
        return DIFFERS, f"differs: {differ}, and scores can't be compared: {scores}"
    attempt.found["scores"] = asdict(scores) | {"within": scores.within}
    gap = scores.difference
    told = (
        f"held-out accuracy {scores.then:.1%} then, {scores.now:.1%} now, "
        f"difference {gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}] on {scores.rows:,} rows, {scores.turned} turned"
    )
    say(f"  {told}")
    if files.identical and not scores.turned:
        return IDENTICAL, f"is reproduced: identical, {len(files.same)} files bit for bit and {scores.rows:,} verdicts"
    if files.identical:
        return DIFFERS, f"differs: {differ}, and yet {scores.turned} verdicts are others: the evaluation isn't the same"
    if not scores.within:
        return DIFFERS, f"differs: {differ}, and {told}"
    if attempt.asked.reproduce.exact:
        return DIFFERS, f"differs: {differ}, and reproduce.exact=true asks for bit for bit ({told})"
    return WITHIN, f"is reproduced within the interval: {differ}; {told}"


def _record(attempt: Attempt, result: str, told: str) -> None:
    """Report, tags on the version, and what was made put away. Raises Refused where it differs."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    _write(attempt, result, told)
    tags = {"reproduced.at": at, "reproduced.result": result, "reproduced.run": attempt.run.id}
    attempt.run.tags(tags)
    registry.tag(attempt.version, tags)
    if result == DIFFERS:
        raise Refused(f"{attempt.version.uri} {told}; what was made lies in {attempt.folder}")
    if not attempt.asked.reproduce.keep:
        shutil.rmtree(attempt.folder)


def _write(attempt: Attempt, result: str, told: str = "") -> None:
    """`reproduction.json`, in the run."""
    report = {
        "version": attempt.version.uri,
        "files": attempt.version.digest,
        "result": result,
        "told": told,
        "allowed": list(attempt.asked.reproduce.allow),
        "commit": attempt.origin.commit if attempt.code else source_tags().get("git.commit"),
        "made": {stage: {"digest": made.digest, "run": made.run_id} for stage, made in attempt.made.items()},
        **attempt.found,
    }
    attempt.run.data(json.dumps(report, indent=2) + "\n", "reproduction.json")
