"""Context, accepted answers and kept columns, from the source to the rows that are written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.errors import DataError
from pipelines.prepare import prepare
from tests.preparation.conftest import Prepare, Prepared
from tests.preparation.test_parts import publish

PASSAGE = (
    "A card ordered inside the country arrives within five working days and one ordered abroad within nine of them, "
    "unless the parcel is held back by customs, in which case the courier sends the customer a message."
)
COLUMNS = [
    f"task.sources.{split}.{field}" for split in ("train", "heldout") for field in ("context=docs", "keep=[lang]")
]
HELD = {"prompt": "Where is it kept?", "completion": "Nowhere at all.", "docs": "Vaults hold it.", "lang": "de"}
ASKED = ("How long does it take at home?", "May a neighbour sign for it?", "Whom do I call when nothing came?")


def asked(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, "docs": PASSAGE, "lang": "en", **more}


@pytest.fixture
def answered(prepared: Prepare) -> Callable[..., Prepared]:
    """Prepares questions over passages, none of them for validation."""

    def run(train: list[dict[str, Any]], *overrides: str, heldout: dict[str, Any] = HELD) -> Prepared:
        options = ["prepare.validation_share=0", *COLUMNS, *overrides]
        return prepared(train, [heldout], *options, task="my_conversations")

    return run


def test_context_and_kept_columns_come_through(answered: Callable[..., Prepared]) -> None:
    done = answered([asked("How long?", docs=[PASSAGE, {"text": "Nine."}]), asked("None?", docs=None, lang=7)])
    rows = {row.kept["lang"] if row.kept else "": row for row in done.rows("train")}
    assert rows["en"].context == [PASSAGE, "Nine."]
    assert rows["en"].prompt[-1]["content"] == f"Context:\n[1] {PASSAGE}\n[2] Nine.\n\nHow long?"
    assert (rows["7"].context, rows["7"].prompt[-1]["content"]) == (None, "None?")
    (held,) = done.rows("heldout")
    assert (held.context, held.kept) == (["Vaults hold it."], {"lang": "de"})


def test_rows_of_another_run_keep_them_and_their_prompts(prepared: Prepare, answered: Callable[..., Prepared]) -> None:
    first = answered([asked(question) for question in ASKED])
    before = first.rows("train")
    source = ["~task.sources.train.path", f"+task.sources.train.rows={publish(first)}"]
    held = ["task.sources.heldout.context=docs", "prepare.validation_share=0"]
    after = prepared([HELD], [HELD], *held, *source, task="my_conversations").rows("train")
    read = [{(r.prompt[-1]["content"], str(r.context), str(r.kept)) for r in rows} for rows in (before, after)]
    assert read[0] == read[1]
    assert len(read[0]) == 3


def test_questions_about_one_passage_are_no_copies_of_each_other(answered: Callable[..., Prepared]) -> None:
    train = [*map(asked, ASKED), asked(f"{ASKED[0]}!"), asked(ASKED[0], docs="Nobody knows. " * 12)]
    done = answered(train, "prepare.contamination.policy=record")
    # Only what asks the same about the same passage goes, here as an exact copy.
    assert [row["reason"] for row in done.removed()] == ["exact duplicate"]
    assert len(done.rows("train")) == 4
    done = answered([asked(ASKED[0]), asked(ASKED[0].replace("take", "takes"))], "prepare.contamination.policy=record")
    assert [row["reason"] for row in done.removed()] == ["near-duplicate"]


def test_a_passage_that_is_held_out_contaminates(answered: Callable[..., Prepared]) -> None:
    done = answered([asked(ASKED[0]), asked(ASKED[1], docs="Nobody knows.")], heldout=asked(ASKED[2]))
    assert [(row["source"].rpartition(":")[2], row["reason"]) for row in done.removed()] == [
        ("1", "contamination: near-duplicate of heldout")
    ]


def test_personal_data_goes_from_context_kept_columns_and_accepted_answers(prepared: Prepare) -> None:
    mail = "jane@example.org"
    record = {"input": f"Who is {mail}?", "ideal": [mail, f"<{mail}>"], "docs": [f"{mail} is Jane.", "x"], "lang": mail}
    options = ["prepare.redact.kinds=[EMAIL_ADDRESS]", "prepare.validation_share=0", *COLUMNS]
    done = prepared([record], [HELD], *options, task="my_conversations")
    (row,) = done.rows("train")
    assert row.context == ["<EMAIL_ADDRESS> is Jane.", "x"]
    # The prompt shows the context as the row has it, so that both can be told apart again.
    assert row.prompt[-1]["content"] == "Context:\n[1] <EMAIL_ADDRESS> is Jane.\n[2] x\n\nWho is <EMAIL_ADDRESS>?"
    assert (row.accepted, row.kept) == (["<<EMAIL_ADDRESS>>"], {"lang": "<EMAIL_ADDRESS>"})
    # One each in question, passage, completion, further answer and kept column.
    assert done.summary["redacted"] == {"EMAIL_ADDRESS": 5}
    assert mail not in (done.folder / "train.jsonl").read_text(encoding="utf-8")


def test_a_column_that_is_missing_is_a_defect(prepared: Prepare, answered: Callable[..., Prepared]) -> None:
    with pytest.raises(DataError) as error:
        answered([asked("How long?"), {"prompt": "a", "completion": "b", "langs": "en", "docs": 3}])
    text = str(error.value)
    assert "train.jsonl:2: 'docs' is a number, expected text, or a list of texts" in text
    with pytest.raises(DataError, match=r"train\.jsonl:1: no field 'lang'; nearest valid name: langs"):
        answered([{"prompt": "a", "completion": "b", "langs": "en", "docs": "c"}])


def test_a_tables_columns_are_checked_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("query,label,passage\na,b,c\n", encoding="utf-8")
    held = json.dumps({"query": "x", "label": "b"}) + "\n"
    (tmp_path / "held.jsonl").write_text(held, encoding="utf-8")
    given = [f"train.path={file}", "train.keep=[region]", f"heldout.path={tmp_path / 'held.jsonl'}"]
    config = compose(["task=my_routing", *(f"task.sources.{field}" for field in given)]).config
    with pytest.raises(
        DataError, match=r"train\.csv:1: no column 'region'; the header has 'query', 'label', 'passage'"
    ):
        prepare(config, tmp_path / "rows")


def test_an_accepted_answer_has_to_be_a_label(prepared: Prepare, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["card", "cash"]), encoding="utf-8")
    options = [f"task.labels={labels}", "task.verify=label"]
    held = [{"prompt": "x", "completion": "cash"}]
    good = {"input": "Where is it?", "ideal": ["card", "cash"]}
    done = prepared([good], held, *options, "prepare.validation_share=0", task="my_conversations")
    (row,) = done.rows("train")
    assert (row.answer, row.label, row.accepted) == ("card", "card", ["cash"])
    with pytest.raises(DataError, match=r"train\.jsonl:1: no label 'csah'; nearest valid name: cash"):
        prepared([good | {"ideal": ["card", "csah"]}], held, *options, task="my_conversations")
