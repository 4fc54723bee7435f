"""Upstream's mbpp.jsonl -> the three files of this folder: `python data/mbpp/make.py mbpp.jsonl`."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

UPSTREAM = "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"
# Upstream's own parts, by task_id; 1 to 10 are for few-shot prompts and go into none.
PARTS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
PROMPT = "{text}\n\n{tests}"


def row(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its prompt, lists as JSON text, and line ends of one kind; the last test isn't shown."""
    tests, challenge = ([_lines(test) for test in record[name]] for name in ("test_list", "challenge_test_list"))
    return {
        "task_id": record["task_id"],
        "text": record["text"],
        "prompt": PROMPT.format(text=record["text"], tests="\n".join(tests[:-1] or tests)),
        "code": _lines(record["code"]),
        "tests": json.dumps(tests),
        "setup": _lines(record["test_setup_code"]),
        "challenge_tests": json.dumps(challenge) if challenge else "",
    }


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def main(path: Path) -> None:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != UPSTREAM:
        raise SystemExit(f"{path} is not upstream's file of sha256 {UPSTREAM}")
    records = [json.loads(line) for line in content.decode().splitlines()]
    for part, ids in PARTS.items():
        rows = [row(record) for record in records if record["task_id"] in ids]
        text = "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in rows)
        (Path(__file__).parent / f"{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
