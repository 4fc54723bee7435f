"""A data set of the Hugging Face Hub, pinned to a commit, or a local folder laid out like one."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.record import Record, column_reasons, plain_records, wanted_columns
from pipelines.errors import Unreachable, UserError
from pipelines.hub import commit_of
from pipelines.product import digest_of, folder_files

COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_records(source: Source, defects: Defects) -> Iterator[Record]:
    """The rows of the splits that `parts` names, train where it names none, numbered from 1 in each.

    Raises UserError where data set, configuration or split don't exist, Unreachable where the Hub doesn't answer.
    """
    splits = _load(source)
    for part in source.parts or ["train"]:
        if part not in splits:
            raise UserError(f"parts: {source.hub} has no split {part!r}{did_you_mean(part, splits)}")
    for part in source.parts or ["train"]:
        yield from _split_records(source, splits[part], part, defects)


def _split_records(source: Source, split: Any, part: str, defects: Defects) -> Iterator[Record]:
    commit = "" if _folder(source) else f"@{hub_commit(source)[:12]}"
    shown = f"{source.hub}{commit}/{part}"
    # A streamed JSON data set knows its columns only once it is read.
    columns = split.column_names
    reasons = column_reasons(columns, wanted_columns(source), "the data set") if columns else []
    for reason in reasons:
        defects.add(Place(shown), reason)
    if not reasons:
        rows = _rows(split, shown, defects)
        yield from plain_records(rows, lambda row: Place(shown, row), defects, part)


def _rows(split: Any, shown: str, defects: Defects) -> Iterator[Mapping[str, Any]]:
    """The rows, up to a file that can't be read: that is a defect of the split."""
    rows, end = iter(split), object()
    while True:
        with _asking(shown):
            try:
                row = next(rows, end)
            except ValueError as error:  # pyarrow's too
                defects.add(Place(shown), f"can't be read: {_first_lines(error, 1)}")
                return
        if row is end:
            return
        yield row  # type: ignore[misc]  # the end was told apart


def _load(source: Source) -> Any:
    """Split -> rows. A folder is streamed: the library's cache of its content could be older than its files."""
    import datasets

    datasets.disable_progress_bars()
    folder = _folder(source)
    with _asking(f"hub: {source.hub}"):
        return datasets.load_dataset(
            str(folder or source.hub),
            name=source.subset,
            revision=None if folder else hub_commit(source),
            streaming=source.streaming or folder is not None,
        )


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Sorts what `datasets` raises: the Hub is silent, or something that was named isn't there."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (ConnectionError, TimeoutError, HTTPError, HfHubHTTPError) as error:
        raise Unreachable(f"{name}: the Hub doesn't answer: {_first_lines(error, 1)}") from None
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise UserError(f"{name}: {_first_lines(error, 2)}") from None


def hub_commit(source: Source) -> str:
    """The commit that a Hub data set is read at; of a local folder the digest of its files.

    Asked once for each data set and revision. Raises UserError and Unreachable as `hub_records` does.
    """
    folder = _folder(source)
    if folder is not None:
        return digest_of(folder_files(folder))
    if source.revision and COMMIT.fullmatch(source.revision):
        return source.revision
    return _resolved(str(source.hub), source.revision)


def _folder(source: Source) -> Path | None:
    """The folder where `hub` names one; None for a Hub id. Raises UserError for a path to nothing."""
    given = str(source.hub)
    path = resolve(given)
    if path.is_dir():
        if source.revision is not None:
            raise UserError(f"revision: belongs to a data set of the Hub; hub names the folder {path}")
        return path
    if given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise UserError(f"hub: {given!r} is neither a folder nor a Hub id (owner/name)")
    return None


@cache
def _resolved(name: str, revision: str | None) -> str:
    """Asked once a process: what is hashed, read and recorded is one commit."""
    return commit_of("dataset", name, revision, "hub", "revision")


def _first_lines(error: Exception, count: int) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[:count])
