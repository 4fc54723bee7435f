"""The one pass over the sources: every record checked, made a row, and put on disk with what later steps compare."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import IO

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Config, Source, SourceFields
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.files import Unreadable, format_of
from pipelines.dataset.normal import normalised, text_hash
from pipelines.dataset.read import content_digest, read_source, source_files
from pipelines.dataset.record import Record
from pipelines.dataset.row import Row, question, text_of
from pipelines.dataset.rows import line_of
from pipelines.dataset.shapes import Draft, Malformed, Reader
from pipelines.dataset.similar import Signatures
from pipelines.dataset.spool import SpoolWriter
from pipelines.errors import DataError, UserError
from pipelines.preparation.alter import Alter
from pipelines.preparation.length import TokenLimit
from pipelines.progress import Meter, meter, say
from pipelines.tasks import UNJUDGED, VerifierFailed, resolve_verify
from pipelines.tasks.rows import Gold, Maker, check_splits

SPLITS = ("train", "validation", "heldout")
ROWS_AT_ONCE = 1024
RECORD = "intake.json"
QUARANTINE = "quarantine.jsonl"
REMOVED = "removed.jsonl"
UNRECOGNISED = 20  # records, after which a source is given up
COUNTERS = ("filtered", "redacted", "languages", "quarantined")
UNHASHED = ("sql", "traces")  # their content is known once it was read


@dataclass
class SourceRecord:
    """What became of one source's records."""

    place: str
    kind: str
    format: str
    records: str
    recognised: bool
    sha256: str | None
    revision: str | None
    license: str
    split: str
    num_read: int = 0
    num_defective: int = 0
    num_left_out: int = 0


@dataclass
class Intake:
    """What the pass found, beside the rows: `sources` in the order of their numbers in the spool."""

    sources: dict[str, SourceRecord] = field(default_factory=dict)
    filtered: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    num_quarantined: int = 0
    num_unchecked: int = 0  # rows whose length needed a tokenizer that wasn't at hand

    def save(self, folder: Path) -> None:
        sources = {name: asdict(source) for name, source in self.sources.items()}
        (folder / RECORD).write_text(json.dumps({**vars(self), "sources": sources}), encoding="utf-8")


def load(folder: Path) -> Intake:
    """The record that `take` left beside the rows."""
    found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    sources = {name: SourceRecord(**values) for name, values in found.pop("sources").items()}
    filtered, redacted, languages, quarantined = (Counter(found.pop(name)) for name in COUNTERS)
    return Intake(sources, filtered, redacted, languages, quarantined, **found)


def signatures(config: Config, folder: Path) -> Signatures:
    """The MinHash signatures beside a spool, to be written or read."""
    return Signatures(folder / "bands", config.prepare.duplicates.threshold, config.seed)


def take(config: Config, folder: Path) -> Intake:
    """Reads all sources into `folder`: a spool, signatures, quarantined and filtered rows, and the record of it.

    Raises DataError with every defect of the sources, unless the configuration quarantines them; UserError where
    the task contradicts itself or a pinned source has changed.
    """
    with ExitStack() as files:
        opened = {
            name: files.enter_context((folder / name).open("w", encoding="utf-8")) for name in (QUARANTINE, REMOVED)
        }
        taking = _Taking(config, folder, opened[QUARANTINE], opened[REMOVED])
        with meter("reading", None, "records") as shown:
            for name in sorted(config.task.sources):
                with named(name):
                    taking.source(name, shown)
        return taking.end()


@contextmanager
def named(source: str) -> Iterator[None]:
    """Completes the field that an error begins with to the source's, as the configuration writes it."""
    try:
        yield
    except UserError as error:
        if str(error).partition(":")[0] in SourceFields.model_fields:
            raise type(error)(f"task.sources.{source}.{error}") from None
        raise


class _Taking:
    """One pass, while it goes on."""

    def __init__(self, config: Config, folder: Path, quarantine: IO[str], removed: IO[str]) -> None:
        prepare, task = config.prepare, config.task
        check_splits(task, prepare.heldout.method != "sources" or prepare.heldout.fixed is not None)
        self.config, self.folder, self.intake = config, folder, Intake()
        self.alter = Alter(prepare, self.intake.filtered, self.intake.redacted, self.intake.languages, removed)
        quarantining = prepare.on_error == "quarantine"
        self.defects = Defects(prepare.max_reported, quarantine if quarantining else None, self.alter.hidden)
        self.maker = Maker(task)
        self.gold = None
        if task.verify != UNJUDGED:
            verify = resolve_verify(task, config.verifier.sandbox)
            self.gold = Gold(verify, task.verify, task.environment is not None)
        self.limit = TokenLimit(config.model, prepare.max_length) if prepare.max_length else None
        self.spool = SpoolWriter(folder)
        self.signatures = signatures(config, folder) if prepare.duplicates.near != "off" else None
        self.waiting: list[_Waiting] = []

    def source(self, name: str, shown: Meter) -> None:
        """Reads one source to its end, or until it is clear that its records are of no known shape."""
        source = self.config.task.sources[name]
        found = self._record(name, source)
        reader = Reader(source)
        before, content, held = self.defects.num_faulty, hashlib.sha256(), set[str]()
        for record in read_source(source, self.defects, self.config.prepare.max_line_bytes, name):
            shown.advance(1)
            if source.kind in UNHASHED:
                content.update(json.dumps(record.fields, sort_keys=True).encode() + b"\n")
            draft = self._draft(reader, record)
            if draft is not None:
                self._draft_taken(source, found, draft, record, held)
            elif reader.shape == "auto" and self.defects.num_faulty - before >= UNRECOGNISED:
                reason = f"none of its first {UNRECOGNISED} records is recognised; the rest was not read"
                self.defects.add(Place(record.place.path), reason)
                break
        self.flush()
        if source.kind in UNHASHED:
            found.sha256 = content.hexdigest()
            _check_pin(name, source, found)
        found.records, found.recognised = reader.shape, reader.recognised
        found.num_defective = self.defects.num_faulty - before
        found.num_read += found.num_defective
        if reader.recognised:
            say(f"  {name}: {found.place} holds {reader.shape}, recognised by its fields")
        self._check_exclude(source, found, held)

    def _record(self, name: str, source: Source) -> SourceRecord:
        digest, hub = content_digest(source), source.kind == "hub"
        found = SourceRecord(
            place=_place(source),
            kind=source.kind,
            format=_format(source),
            records=source.records,
            recognised=False,
            sha256=None if hub else digest,
            revision=digest if hub else None,
            license=source.license,
            split=source.split,
        )
        if source.kind not in UNHASHED:
            _check_pin(name, source, found)
        self.intake.sources[name] = found
        return found

    def _draft(self, reader: Reader, record: Record) -> Draft | None:
        try:
            return reader.read(record.fields)
        except Malformed as fault:
            for reason in fault.reasons:
                self._defect(record.place, reason, record)
            return None

    def _defect(self, place: Place, reason: str, record: Record, hint: Callable[[], str] | None = None) -> None:
        self.defects.add(place, reason, hint, lambda: record.fields)

    def _draft_taken(self, source: Source, found: SourceRecord, draft: Draft, record: Record, held: set[str]) -> None:
        if source.exclude:
            held.add(draft.written)
            if draft.written in source.exclude:
                found.num_left_out += 1
                found.num_read += 1
                return
        row = self.maker.row(draft, record.place)
        time = self._time(source, draft, record)
        if unknown := self.maker.unknown_label(row):
            self._defect(record.place, f"no label {unknown!r}", record, partial(self.maker.nearest_label, unknown))
        elif reason := self._fails(row):
            self._defect(record.place, reason, record)
        elif time is not None:
            self.waiting.append(_Waiting(row, record, found, len(self.intake.sources) - 1, time))
        if len(self.waiting) >= ROWS_AT_ONCE:
            self.flush()

    def _fails(self, row: Row) -> str | None:
        """Why the row's own answer isn't right. Raises UserError where the verifier fails, which is no defect."""
        try:
            return self.gold.problem(row) if self.gold is not None else None
        except VerifierFailed as error:
            raise UserError(f"task.verify: {self.config.task.verify} failed on {row.source}: {error}") from error

    def _time(self, source: Source, draft: Draft, record: Record) -> float | None:
        """Seconds of the row's instant, NaN where the source names no column; None and a defect where it is none."""
        if source.time is None:
            return nan
        try:
            return instant(draft.time or "")
        except ValueError as error:
            self._defect(record.place, f"{source.time!r}: {error}", record)
            return None

    def _check_exclude(self, source: Source, found: SourceRecord, held: set[str]) -> None:
        """A label to leave out that no record has is a mistyped one."""
        for label in source.exclude if held else []:
            if label not in held:
                reason = f"exclude: no record has the label {label!r}"
                self.defects.add(Place(found.place), reason, partial(did_you_mean, label, held))

    def flush(self) -> None:
        """Puts the waiting rows onto the disk, those that are too long or filtered left out."""
        waiting, self.waiting = self._fitting(self.waiting), []
        for item in waiting:
            item.found.num_read += 1
        kept = [
            item
            for item in waiting
            if (row := self.alter.row(item.row, item.found.split != "heldout")) and item.replaced(row)
        ]
        texts = [normalised(question(item.row.prompt)) for item in kept]
        for item, text in zip(kept, texts, strict=True):
            self._spool(item, text)
        if self.signatures is not None:
            self.signatures.add(texts)

    def _fitting(self, waiting: list["_Waiting"]) -> list["_Waiting"]:
        """Those that the model can take; the others are defects."""
        if self.limit is None:
            return waiting
        kept = []
        for item, fault in zip(waiting, self.limit.faults([item.row for item in waiting]), strict=True):
            if fault is None:
                kept.append(item)
            else:
                self._defect(item.record.place, fault, item.record)
        return kept

    def _spool(self, item: "_Waiting", asked: str) -> None:
        row = item.row
        answer = " ".join(text_of(message) for message in row.completion) or row.answer
        calls = json.dumps([m["tool_calls"] for m in row.completion if m.get("tool_calls")], sort_keys=True)
        rejected = " ".join(text_of(message) for message in row.rejected or [])
        # Under another system message, or after other answers, the same question is another one.
        prompt = asked if len(row.prompt) == 1 else normalised("\n".join(map(text_of, row.prompt)))
        whole = "\0".join([prompt, normalised(answer), calls, normalised(rejected)])
        self.spool.add(
            line_of(row).encode(),
            asked,
            row.label,
            id=int(row.id, 16),
            asks=text_hash(prompt),
            whole=text_hash(whole),
            group=int(row.group, 16),
            split=SPLITS.index(item.found.split),
            origin=item.origin,
            time=item.time,
        )

    def end(self) -> Intake:
        self.spool.close()
        if self.signatures is not None:
            self.signatures.close()
        self.intake.quarantined = self.defects.reasons
        self.intake.num_quarantined = self.defects.num_records
        self.intake.num_unchecked = self.limit.num_unchecked if self.limit else 0
        self.defects.raise_if_any(self.spool.num_rows)
        self.intake.save(self.folder)
        return self.intake


@dataclass(slots=True)
class _Waiting:
    """A row that hasn't been written yet."""

    row: Row
    record: Record
    found: SourceRecord
    origin: int
    time: float

    def replaced(self, row: Row) -> bool:
        self.row = row
        return True


def _check_pin(name: str, source: Source, found: SourceRecord) -> None:
    """Raises DataError where the content isn't the one that the configuration pins."""
    if None not in (source.sha256, found.sha256) and found.sha256 != source.sha256:
        raise DataError(
            f"task.sources.{name}.sha256: expected {source.sha256}, {found.place} has {found.sha256}; it has changed"
        )


def instant(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 instant (without a zone: UTC) or of a number of seconds. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if isfinite(seconds):
            return seconds
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected an instant such as 2026-01-31T08:00, got {text!r}") from None
    return found.timestamp() if found.tzinfo else (found - datetime(1970, 1, 1)).total_seconds()


def _format(source: Source) -> str:
    """The format of a source's files, those that their endings tell included; the kind of any other source."""
    if source.kind != "path" or source.format != "auto":
        return source.format if source.kind == "path" else source.kind
    try:
        found = {format_of(path) for path in source_files(source)}
    except Unreadable:  # reading tells which file and why
        return source.format
    return ", ".join(sorted(name for name in found if name)) or source.format


def _place(source: Source) -> str:
    """The source as the configuration names it; a database's address stays out of it."""
    return str(source.sql if source.kind == "sql" else getattr(source, source.kind))
