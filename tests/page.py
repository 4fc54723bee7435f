"""A page as a test reads it."""

import re
from html.parser import HTMLParser

PARTED = ("td", "th", "tr", "dt", "dd", "h2", "h3", "p", "small", "b")


class Page(HTMLParser):
    """The page's tags, resource attributes and visible words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words += data


class SpacedPage(Page):
    """Its words parted where its cells and paragraphs are, white space folded."""

    def __init__(self, html: str) -> None:
        super().__init__(html)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag in PARTED:
            self.words += " "
