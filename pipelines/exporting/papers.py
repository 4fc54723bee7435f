"""What goes with weights wherever they go: the model card, licences and attributions, and what each file is."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipelines.product import digest_of, folder_files

RELEASE = "artifacts/release"
KEPT = {"README.md": "README.md", "NOTICE.md": "NOTICE.md"}
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
FILES = "files.json"


def add(folder: Path, version: Path, base: Path | None, tags: Mapping[str, str]) -> None:
    """The version's card and notices, and the licence files of the base's folder where there is one.

    A version without notices gets some from its tags.
    """
    for name, target in KEPT.items():
        if (version / RELEASE / name).is_file():
            shutil.copyfile(version / RELEASE / name, folder / target)
    for pattern in LICENCES if base else ():
        for path in sorted(base.glob(pattern)) if base else []:
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if not (folder / "NOTICE.md").exists():
        (folder / "NOTICE.md").write_text(_notice(tags), encoding="utf-8")


def seal(folder: Path) -> tuple[int, str]:
    """Writes `files.json`, the sha256 of each file; returns the bytes of all, and the digest that stands for them."""
    files = folder_files(folder)
    size = sum((folder / name).stat().st_size for name in files)
    (folder / FILES).write_text(json.dumps(files, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return size, digest_of(files)


def _notice(tags: Mapping[str, str]) -> str:
    named = {
        "Base model": "base.id",
        "Revision of the base": "base.revision",
        "Licence of the base": "base.license",
        "Licences of the rows": "rows.licenses",
        "Teachers": "teachers",
        "Licences of the teachers": "teachers.licenses",
    }
    lines = [f"- {name}: {tags[tag]}" for name, tag in named.items() if tags.get(tag)]
    return "\n".join(["# Notices", "", *lines, ""])
