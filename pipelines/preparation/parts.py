"""Which rows are held out, which validate, and how the sources are mixed."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Config, Heldout
from pipelines.dataset import split
from pipelines.dataset.row import Row
from pipelines.dataset.rows import line_of, read_rows
from pipelines.dataset.split import Clusters
from pipelines.errors import UserError
from pipelines.preparation.intake import SPLITS, instant
from pipelines.preparation.pool import HELDOUT, Flags, Pool
from pipelines.product import Product, load
from pipelines.progress import Meter, meter
from pipelines.tasks.rows import Maker

TRAIN, VALIDATION = SPLITS.index("train"), SPLITS.index("validation")


def fixed_product(settings: Heldout) -> Product | None:
    """The product whose held-out rows are to be these. Raises UserError where it is none of prepare's."""
    if settings.fixed is None:
        return None
    found = load(resolve(settings.fixed))
    if found.kind != "rows":
        raise UserError(f"prepare.heldout.fixed: expected a folder of kind rows, {settings.fixed} is {found.kind}")
    return found


@dataclass(frozen=True)
class Cut:
    """How a part of the training rows is chosen, and what for."""

    method: str
    share: float
    to: int
    after: str | None = None

    @property
    def purpose(self) -> str:
        return "heldout" if self.to == HELDOUT else "split"


def hold_out(pool: Pool, config: Config, cluster: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Moves rows of the training sources into the held-out split, as `prepare.heldout` says."""
    settings = config.prepare.heldout
    fixed = fixed_product(settings)
    if fixed is not None:
        return _as_before(pool, fixed)
    said: dict[str, Any] = {"method": settings.method, "fixed": None}
    if settings.method == "sources":
        return said
    rows = np.flatnonzero(pool.alive & (pool.split == TRAIN))
    clusters = _clusters(pool, rows, cluster)
    if settings.method == "matched":
        taken, shares = _matched(pool, settings, clusters, rows, config.seed)
        said |= shares
    else:
        cut = Cut(settings.method, settings.share, HELDOUT, settings.after)
        taken = _taken(pool, cut, clusters, rows, config.seed)
    pool.split[rows[taken]] = HELDOUT
    return said


def _as_before(pool: Pool, fixed: Product) -> dict[str, Any]:
    """Rows that an earlier prepare held out are out; its file is copied, so nothing that was added moves it."""
    held = np.array([int(row.id, 16) for row in read_rows(fixed.file("heldout.jsonl"))], np.uint64)
    known = np.isin(pool.spool.column("id"), held)
    pool.drop("held out before", np.flatnonzero(pool.alive & known))
    pool.drop("of held-out sources and not held out before", np.flatnonzero(pool.heldout))
    return {"method": "fixed", "fixed": fixed.digest}


def validate(pool: Pool, config: Config, cluster: npt.NDArray[np.int32]) -> None:
    """Moves a share of the training rows into the validation split."""
    share, method = config.prepare.validation_share, config.prepare.validation_method
    rows = np.flatnonzero(pool.alive & (pool.split == TRAIN))
    if share and len(rows):
        taken = _taken(pool, Cut(method, share, VALIDATION), _clusters(pool, rows, cluster), rows, config.seed)
        pool.split[rows[taken]] = VALIDATION


def _clusters(pool: Pool, rows: npt.NDArray[np.int64], cluster: npt.NDArray[np.int32]) -> Clusters:
    return Clusters.of(cluster[rows], pool.spool.column("group")[rows], pool.spool.column("label")[rows])


def _taken(pool: Pool, cut: Cut, clusters: Clusters, rows: npt.NDArray[np.int64], seed: int) -> Flags:
    if cut.method == "hash":
        return split.by_hash(clusters, cut.share, seed, cut.purpose)
    if cut.method == "stratified":
        return split.stratified(clusters, pool.spool.labels, cut.share, seed, cut.purpose)
    time = pool.spool.column("time")[rows]
    if np.isnan(time).any():
        raise UserError("prepare: a split by time needs `time`, the column of the instants, of each training source")
    return split.by_time(clusters, time, cut.share, None if cut.after is None else _instant(cut.after))


def _instant(text: str) -> float:
    try:
        return instant(text)
    except ValueError as error:
        raise UserError(f"prepare.heldout.after: {error}") from None


def _matched(
    pool: Pool, settings: Heldout, clusters: Clusters, rows: npt.NDArray[np.int64], seed: int
) -> tuple[Flags, dict[str, Any]]:
    shares = settings.shares or {}
    codes = {label: code for code, label in enumerate(pool.spool.labels)}
    for label in shares:
        if label not in codes:
            raise UserError(f"prepare.heldout.shares: no row has the label {label!r}{did_you_mean(label, codes)}")
    # As many as the rarest label allows, if each label keeps the rest of its rows for training.
    held = np.bincount(pool.spool.column("label")[rows], minlength=len(codes))
    most = min(settings.share * held[codes[label]] / share for label, share in shares.items())
    size = settings.size or int(most)
    taken = split.matched(clusters, {codes[label]: share for label, share in shares.items()}, size, seed, "heldout")
    found = Counter(pool.spool.labels[code] for code in pool.spool.column("label")[rows[taken]].tolist())
    total = max(1, sum(found.values()))
    achieved = {label: found[label] / total for label in shares}
    return taken, {"size": size, "target_shares": dict(shares), "achieved_shares": achieved}


def mix(pool: Pool, config: Config) -> dict[str, Any]:
    """Samples the training rows of sources with a weight to the largest mixture of these shares; none is repeated."""
    sources = [config.task.sources[name] for name in sorted(config.task.sources)]
    weights = {number: s.weight for number, s in enumerate(sources) if s.weight is not None and s.split == "train"}
    if not weights:
        return {}
    origin, ids = pool.spool.column("origin"), pool.spool.column("id")
    train = pool.alive & (pool.split == TRAIN)
    rows = {number: np.flatnonzero(train & (origin == number)) for number in weights}
    size = min(len(rows[number]) / weight for number, weight in weights.items())
    names = sorted(config.task.sources)
    kept, left = {}, []
    for number, weight in weights.items():
        chosen = split.sample(ids[rows[number]], round(weight * size), config.seed)
        kept[names[number]] = len(chosen)
        left += np.delete(rows[number], chosen).tolist()
    pool.drop("weights of the sources", left)
    total = max(1, sum(kept.values()))
    return {
        name: {"weight": config.task.sources[name].weight, "num_rows": n, "share": n / total}
        for name, n in kept.items()
    }


def limit(pool: Pool, config: Config) -> None:
    """Keeps a seeded sample of each source that has a limit."""
    origin, ids = pool.spool.column("origin"), pool.spool.column("id")
    limits = {n: config.task.sources[name].limit for n, name in enumerate(sorted(config.task.sources))}
    left: list[int] = []
    for number, most in limits.items():
        if most is not None:
            rows = np.flatnonzero(origin == number)
            left += np.delete(rows, split.sample(ids[rows], most, config.seed)).tolist()
    if any(limits.values()):
        pool.drop("limits of the sources", left)


def write(pool: Pool, folder: Path, config: Config) -> dict[str, str]:
    """Writes each split's rows sorted by id, so that any first n are a random sample; returns the files' sha256."""
    number = pool.spool.column("id")
    renumbered = _renumber(pool, number, Maker(config.task))
    digests = {}
    with meter("writing", int(pool.alive.sum()), "rows") as shown:
        for code, name in enumerate(SPLITS):
            rows = np.flatnonzero(pool.alive & (pool.split == code))
            rows = rows[np.argsort(number[rows], kind="stable")]
            digests[name] = _write_split(pool, rows, folder / f"{name}.jsonl", renumbered, shown)
    if fixed := fixed_product(config.prepare.heldout):
        shutil.copyfile(fixed.file("heldout.jsonl"), folder / "heldout.jsonl")
        digests["heldout"] = fixed.about["digests"]["heldout"]
    return digests


def _write_split(
    pool: Pool, rows: npt.NDArray[np.int64], path: Path, renumbered: Mapping[int, bytes], shown: Meter
) -> str:
    state = hashlib.sha256()
    with path.open("wb") as file:
        for row, line in zip(rows.tolist(), pool.spool.lines(rows), strict=True):
            written = renumbered.get(row, line) + b"\n"
            state.update(written)
            file.write(written)
            shown.advance(1)
    return state.hexdigest()


def _renumber(pool: Pool, number: npt.NDArray[np.uint64], maker: Maker) -> dict[int, bytes]:
    """New lines of rows that equal another in everything, whose ids would be one; `number` is changed along."""
    rows = np.flatnonzero(pool.alive)
    order = rows[np.argsort(number[rows], kind="stable")]
    again = np.flatnonzero(number[order][1:] == number[order][:-1]) + 1
    lines: dict[int, bytes] = {}
    seen: Counter[int] = Counter()
    taken: set[str] = set()
    for row in order[again].tolist():
        found = Row.from_dict(next(pool.spool.records([row])))
        while True:  # rows that redaction made alike would get one id
            seen[int(number[row])] += 1
            new = maker.numbered(found, seen[int(number[row])])
            if new not in taken:
                break
        taken.add(new)
        lines[row] = line_of(replace(found, id=new)).encode()
    for row, line in lines.items():
        number[row] = int(json.loads(line)["id"], 16)
    return lines
