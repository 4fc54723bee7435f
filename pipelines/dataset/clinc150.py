"""The nested JSON of CLINC150, `{part: [[query, intent], ...]}`, with the line of every pair.

Format: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction", file data_full.json. `json.load` would lose the line numbers, which every defect and
every row names.
"""

from collections.abc import Container, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.dataset.lines import Text
from pipelines.dataset.record import Record
from pipelines.dataset.strict_json import Walk, json_reason


def clinc150_records(text: Text, parts: Sequence[str]) -> Iterator[Record]:
    """Records with the fields `query` and `intent` of these parts; a part that the file lacks is a defect."""
    held = set()
    try:
        for part, line, pair in walk(text.content(), parts):
            held.add(part)
            if part not in parts:
                continue
            if isinstance(pair, list) and len(pair) == 2:
                yield Record(text.place(line), {"query": pair[0], "intent": pair[1]}, part)
            else:
                text.defects.add(text.place(line), "expected a pair [query, intent]", raw=partial(deepcopy, pair))
    except (ValueError, RecursionError) as error:
        text.defects.add(text.whole(getattr(error, "lineno", None)), json_reason(error))
    else:
        for part in sorted(set(parts) - held):
            text.defects.add(text.whole(None), f"no pairs in part {part!r}{did_you_mean(part, held)}")


def walk(text: str, wanted: Container[str]) -> Iterator[tuple[str, int, Any]]:
    """(part, line, pair) in the file's order; of a part that isn't wanted one, with its whole list.

    Raises json.JSONDecodeError where the text is no JSON or not nested as described, and
    ShapeError for a part that the file holds twice: which one is meant, nobody knows.
    """
    at = Walk(text)
    for line, part in at.members("part"):
        if part not in wanted:
            yield part, line, at.value()
            continue
        for _ in at.items("[", "]"):
            yield part, at.line(), at.value()
    at.end()
