"""What an earlier prepare wrote, as a source: its folder, or the run that made it."""

from pathlib import Path

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Source
from pipelines.dataset.files import Found
from pipelines.errors import UserError
from pipelines.product import load

SPLITS = ("train", "validation", "heldout")
_RUN = "run:"


def split_files(source: Source) -> dict[str, Found]:
    """The file of each split that `parts` names, train where it names none; all hashes are checked.

    Raises UserError where there is no such product, it isn't whole, or is none of prepare.
    """
    given = str(source.rows)
    folder = _folder(given)
    product = load(folder)
    if product.kind != "rows":
        raise UserError(f"rows: {given} holds {product.kind}, expected rows that prepare wrote")
    return {part: _split_file(product.folder, given, part) for part in source.parts or ["train"]}


def _folder(given: str) -> Path:
    if not given.startswith(_RUN):
        return resolve(given)
    from pipelines.tracking.product import product_folder

    return product_folder(given.removeprefix(_RUN), "rows")


def _split_file(folder: Path, given: str, part: str) -> Found:
    if part not in SPLITS:
        raise UserError(f"parts: no split {part!r} of rows{did_you_mean(part, SPLITS)}")
    name = f"{part}.jsonl"
    if not (folder / name).is_file():
        raise UserError(f"rows: {folder} holds no {name}")
    shown = str(folder) if given.startswith(_RUN) else given.rstrip("/")
    return Found(folder / name, f"{shown}/{name}", name)
