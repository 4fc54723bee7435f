"""What every report has in common: one page that loads nothing, its look, and how it prints numbers."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

CSS = Path(__file__).with_suffix(".css")
# The page may show its own pictures and style, and load or run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def environment(folder: Path) -> Environment:
    """Templates of `folder` with all strings escaped; one that uses an unknown name is an error.

    They have the filters `count` and `percent`, and the names `head` (what stands in a page's head), XX
    that may break at its underscores and slashes) and `image` (a PNG as `src`).
    """
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": count, "percent": percent}
    made.globals |= {"head": head, "name": name}
    return made


def head(title: str) -> Markup:
    """The page's head: its title, the policy that forbids loading, and the look."""
    return Markup(
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{title}</title>\n<style>\n{css}</style>'
    ).format(policy=Markup(POLICY), title=title, css=Markup(CSS.read_text(encoding="utf-8")))


def name(text: object) -> Markup:
    """The name, escaped, with places where it may break in a narrow column."""
    return Markup(re.sub(r"([_/])(?=.)", r"\1<wbr>", str(escape(str(text)))))


def sources(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """PNG pictures as what an `img` shows."""
    return {key: f"data:image/png;base64,{base64.b64encode(png).decode()}" for key, png in pictures.items()}


def count(number: int | None) -> str:
    """1234 as 1,234; a dash for None."""
    return "-" if number is None else f"{number:,}"


def percent(share: float, digits: int = 1) -> str:
    """0.123 as 12.3 %."""
    return f"{100 * share:.{digits}f} %"
