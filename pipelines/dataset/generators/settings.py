"""The settings of a source, as its generator reads them."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pipelines.config.nearest import did_you_mean
from pipelines.errors import UserError

Value = TypeVar("Value")
PARTS = ("train", "heldout")


def known(settings: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises UserError for a setting that the generator doesn't have."""
    for name in settings:
        if name not in names:
            raise UserError(f"settings: no setting {name!r}, expected {', '.join(names)}{did_you_mean(name, names)}")


def part(settings: Mapping[str, Any]) -> str | None:
    """`part`: train or heldout, which share no problem; null for any. Raises UserError."""
    value = settings.get("part")
    if value is not None and value not in PARTS:
        raise UserError(f"settings: part: expected {' or '.join(PARTS)}, got {value!r}")
    return value


def bounds(settings: Mapping[str, Any], name: str, default: int, least: int, most: int) -> tuple[int, int]:
    """A number, or a list of the smallest and the largest, within least..most. Raises UserError."""
    value = settings.get(name, default)
    low_high = value if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in low_high)
    if len(low_high) != 2 or not whole or not least <= low_high[0] <= low_high[1] <= most:
        raise UserError(f"settings: {name}: expected a number from {least} to {most}, or [low, high], got {value!r}")
    return low_high[0], low_high[1]
