"""Licences of all that a version was made of, and the attributions that they ask for: `NOTICE.md`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.release.papers import Made, sources

ATTRIBUTED = (
    "CC-BY",
    "ODC-BY",
    "MIT",
    "BSD",
    "Apache",
    "ISC",
    "CDLA",
)  # how licences begin that ask to name the source
FREE = ("CC0", "Unlicense", "0BSD")
KEPT = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")  # a base's own files that have to come along
LONGEST = 64_000  # characters of such a file


def asks_attribution(license: str) -> bool:
    """Whether the licence is known to ask that its source be named."""
    return license.startswith(ATTRIBUTED)


def unattributed(made: Made) -> list[str]:
    """Sources whose licence asks for an attribution that the configuration doesn't give."""
    return [s["name"] for s in sources(made) if asks_attribution(s["license"]) and not s["attribution"]]


def notice(made: Made, base: Path | None) -> str:
    """The page; `base` is the folder of the base's files, whose licence and notice files are repeated."""
    lines = ["# Notices", "", "What this adapter was made of, under which licences, and whom they ask to name.", ""]
    lines += ["## Base model", "", *_base(made), "", "## Data", "", *_data(made)]
    if teachers := made.adapter.about.get("teachers", []):
        lines += ["", "## Teachers", ""]
        lines += [_teacher(teacher) for teacher in teachers]
    for path in _kept(base):
        text = path.read_text(encoding="utf-8", errors="replace")[:LONGEST]
        lines += ["", f"## {path.name} of the base model", "", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def _base(made: Made) -> Iterator[str]:
    model = made.config.model
    yield f"- {model.id}, revision `{model.revision}`: {_linked(model.license.id, model.license.url)}"
    if model.license.conditions:
        yield f"- Its conditions: {' '.join(model.license.conditions.split())}"


def _data(made: Made) -> Iterator[str]:
    """A line for each source; sources with one licence and one attribution share it."""
    grouped: dict[tuple[str, str | None], list[str]] = {}
    for source in sources(made):
        grouped.setdefault((source["license"], source["attribution"]), []).append(
            f"{source['name']} ({source['place']})"
        )
    for (license, attribution), named in grouped.items():
        told = f"- {', '.join(named)}: {license}."
        if attribution:
            told += f" {' '.join(attribution.split())}"
        elif asks_attribution(license):
            told += " The licence asks to name the source; the configuration gives no attribution."
        elif not license.startswith(FREE):
            told += " Whether it asks for an attribution is not known."
        yield told


def _teacher(teacher: Mapping[str, Any]) -> str:
    license = teacher["license"]
    named = teacher.get("id") or teacher.get("model") or teacher.get("endpoint") or teacher.get("digest")
    conditions = f" Its conditions: {' '.join(license['conditions'].split())}" if license.get("conditions") else ""
    return f"- {named}: {_linked(license['id'], license.get('url'))}.{conditions}"


def _linked(name: str, url: str | None) -> str:
    return f"[{name}]({url})" if url else name


def _kept(base: Path | None) -> list[Path]:
    found = sorted(base.iterdir()) if base is not None else []
    return [path for path in found if path.is_file() and path.name.upper().startswith(KEPT)]
