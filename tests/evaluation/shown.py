"""The numbers of a report page as a program finds them: by the attributes of what shows them."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser

Key = tuple[tuple[str, str], ...]  # data-NAME attributes by name, `part` among them
SCALES = {"%": 0.01, "points": 0.01, "ms": 0.001}
VOID = {"meta", "br", "wbr", "img"}


def key(part: str, **about: object) -> Key:
    return tuple(sorted({"part": part, **{name: str(value) for name, value in about.items()}}.items()))


@dataclass(frozen=True)
class Shown:
    """A number as it is printed."""

    key: Key
    text: str

    def number(self, share: bool) -> tuple[float, float]:
        """(value, half a unit of its last digit); `share` says that it is in % or points, with or without the sign."""
        found = re.fullmatch(r"(?:\$ )?(<?) ?([+-]?[\d,]+(?:\.(\d+))?) ?([^\d\s]\S*)?", self.text)
        assert found, self.text
        scale = 0.01 if share else SCALES.get(found[4] or "", 1.0)
        return float(found[2].replace(",", "")) * scale, 0.5 * 10.0 ** -len(found[3] or "") * scale


class Numbers(HTMLParser):
    """Every marked number of the page, and the digits of cells for numbers that stand outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[Shown] = []
        self.unmarked: list[str] = []
        self.rows: list[tuple[str, str]] = []
        self._open: list[dict[str, str]] = []
        self.feed(html)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        if "data-why" in held:
            self.rows.append((held["data-why"], held["data-row"]))
        if tag not in VOID:
            self._open.append({"tag": tag, **held})

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        if self._open and "data-part" in self._open[-1]:
            held = self._open[-1].items()
            about = {name.removeprefix("data-"): value for name, value in held if name.startswith("data-")}
            self.found.append(Shown(tuple(sorted(about.items())), data))
        elif re.search(r"\d", data) and any(
            one["tag"] == "td" and "number" in one.get("class", "") for one in self._open
        ):
            self.unmarked.append(data)
