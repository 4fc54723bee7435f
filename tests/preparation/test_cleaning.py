"""Duplicates, filters, redaction and contamination, each on rows made for it, and GSM8K for real."""

import json
from pathlib import Path

import pytest

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.errors import DataError
from pipelines.prepare import prepare
from tests.preparation.conftest import SPLITS, Prepare, record, sentence

OTHERS = [record(sentence(number), "ab"[number % 2]) for number in range(40)]
LONG = "please tell me where the card is that was sent to my old address in march"


def test_exact_duplicates_leave_the_first_by_id_and_name_it(prepared: Prepare) -> None:
    same = [record("Where is it?"), record("where  is it"), record("Where IS it!!")]
    done = prepared([*OTHERS, *same], None)
    kept = [row for split in SPLITS for row in done.rows(split) if "where" in row.prompt[0]["content"].lower()]
    removed = done.removed()
    assert (len(kept), len(removed), done.summary["duplicates"]["exact"]) == (1, 2, 2)
    assert all(each["reason"] == "exact duplicate" and kept[0].id in each["of"] for each in removed)
    assert kept[0].id < min(each["id"] for each in removed)


def test_a_question_with_two_answers_is_a_conflict_not_a_duplicate(prepared: Prepare) -> None:
    done = prepared([*OTHERS, record("Where is it?", "a"), record("where is it", "b")], None)
    assert (done.summary["duplicates"]["exact"], done.summary["duplicates"]["conflicts"]) == (0, 1)
    (example,) = done.summary["duplicates"]["conflict_examples"]
    assert sorted(example["answers"]) == ["a", "b"]
    assert len(example["sources"]) == 2


def test_another_system_message_makes_another_row(prepared: Prepare) -> None:
    def said(system: str) -> dict[str, object]:
        turns = (("system", system), ("user", LONG), ("assistant", "On its way."))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    held = [{"messages": [{"role": "user", "content": "never"}, {"role": "assistant", "content": "asked"}]}]
    train = [said("Answer in prose."), said("Answer in verse."), said("answer in verse")]
    off = ["prepare.duplicates.near=off", "prepare.validation_share=0"]
    done = prepared(train, held, *off, task="my_conversations")
    assert (len(done.rows("train")), done.summary["duplicates"]["exact"]) == (2, 1)


def test_near_duplicates_go_unless_their_labels_differ(prepared: Prepare) -> None:
    near = [record(LONG, "a"), record(f"{LONG} 2024", "a"), record(LONG.replace("card", "cart"), "b")]
    done = prepared([*OTHERS, *near], None)
    (removed,) = done.removed()
    assert removed["reason"] == "near-duplicate"
    assert 0.8 <= removed["similarity"] < 1
    assert done.summary["duplicates"]["near"] == 1
    kept = {row.prompt[0]["content"] for split in ("train", "validation") for row in done.rows(split)}
    assert LONG.replace("card", "cart") in kept
    assert len(kept & {LONG, f"{LONG} 2024"}) == 1


def test_recorded_duplicates_stay(prepared: Prepare) -> None:
    near = [record(LONG), record(LONG), record(f"{LONG} 2024")]
    done = prepared([*OTHERS, *near], None, "prepare.duplicates.exact=record", "prepare.duplicates.near=record")
    assert sum(len(done.rows(split)) for split in ("train", "validation")) == 43
    assert (done.summary["duplicates"]["exact"], done.summary["duplicates"]["near"]) == (1, 2)
    ids = [row.id for split in SPLITS for row in done.rows(split)]
    assert len(set(ids)) == len(ids)


def test_answers_of_free_text_have_to_be_alike_too(prepared: Prepare) -> None:
    prose = ["A tall ship crosses the bay at dawn.", "Ants never sleep, and nobody asks them why not."]
    train = [*OTHERS, record(LONG, prose[0]), record(f"{LONG} 2024", prose[1])]
    done = prepared(train, None, "task.verify=exact")
    assert done.summary["duplicates"]["near"] == 0


def test_filters_list_what_they_leave_out(prepared: Prepare) -> None:
    german = "Wo ist meine Karte geblieben, die vor zwei Wochen an meine alte Adresse geschickt wurde?"
    train = [*OTHERS, record("hm"), record("x" * 400), record(german)]
    options = ["min_prompt_chars=5", "max_prompt_chars=300", "languages=[en]"]
    done = prepared(train, None, *(f"prepare.filters.{option}" for option in options))
    reasons = {each["text"]: each["reason"] for each in done.removed()}
    assert reasons["hm"] == "filters.min_prompt_chars: 5"
    assert reasons["x" * 400] == "filters.max_prompt_chars: 300"
    assert reasons[german] == "filters.languages: de"
    assert done.summary["languages"]["de"] == 1
    steps = {step["step"]: step.get("removed") for step in done.summary["funnel"]}
    assert steps["filter min_prompt_chars"] == steps["filter max_prompt_chars"] == 1


def test_personal_data_is_replaced_and_counted(prepared: Prepare) -> None:
    train = [*OTHERS, record("write to jane.doe@example.org or jd@example.com about card 4111 1111 1111 1111")]
    done = prepared(train, None, "prepare.redact.kinds=[EMAIL_ADDRESS,CREDIT_CARD]")
    asked = done.asked("train") | done.asked("validation")
    assert "write to <EMAIL_ADDRESS> or <EMAIL_ADDRESS> about card <CREDIT_CARD>" in asked
    assert done.summary["redacted"] == {"CREDIT_CARD": 1, "EMAIL_ADDRESS": 2}
    assert (
        "example.org" not in (done.folder / "train.jsonl").read_text() + (done.folder / "validation.jsonl").read_text()
    )


def test_a_calls_arguments_are_redacted(prepared: Prepare) -> None:
    tool = {"name": "mail", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}
    call = {"type": "function", "function": {"name": "mail", "arguments": {"to": "jane@example.org"}}}
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "mail her"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sent to jane@example.org"},
        {"role": "assistant", "content": "Done."},
    ]
    held = [{"messages": [{"role": "user", "content": "never"}, {"role": "assistant", "content": "asked"}]}]
    options = ["prepare.redact.kinds=[EMAIL_ADDRESS]", "prepare.validation_share=0"]
    done = prepared([{"messages": turns, "tools": [tool]}], held, *options, task="my_conversations")
    (row,) = done.rows("train")
    assert row.completion[0]["tool_calls"][0]["function"] == {"name": "mail", "arguments": {"to": "<EMAIL_ADDRESS>"}}
    assert row.completion[1]["content"] == "sent to <EMAIL_ADDRESS>"
    assert done.summary["redacted"] == {"EMAIL_ADDRESS": 2}


HELD = [record(LONG), record("how much does a transfer to another country cost on a sunday")]


def test_contaminated_rows_go_with_the_text_that_tells(prepared: Prepare) -> None:
    shared = " ".join(LONG.split()[:13])
    train = [
        *OTHERS,
        record(LONG.upper()),
        record(f"please {LONG}s"),
        record(f"{shared} {sentence(77)} {sentence(78)}"),
        record(" ".join(LONG.split()[:9]) + f" {sentence(79)} {sentence(80)}"),
    ]
    done = prepared(train, HELD, "prepare.duplicates.near=off")
    found = done.summary["contamination"]["against"]["heldout"]
    assert (found["num_protected"], found["equal"], found["near"]) == (2, 1, 1)
    assert found["ngrams"] == {"13": 3, "8": 4}
    assert found["removed"] == done.summary["contamination"]["removed"] == 3
    reasons = {each["reason"]: each for each in done.removed()}
    assert set(reasons) == {
        "contamination: equal of heldout",
        "contamination: near-duplicate of heldout",
        "contamination: 13-gram of heldout",
    }
    assert reasons["contamination: 13-gram of heldout"]["match"] == shared
    assert reasons["contamination: near-duplicate of heldout"]["protected"] == LONG
    assert len(done.rows("heldout")) == 2
    # The row that shares nine words is counted and listed, and stays.
    lines = (done.folder / "contamination.jsonl").read_text(encoding="utf-8").splitlines()
    hits = {hit["found"]: hit for hit in map(json.loads, lines)}
    assert set(hits) == {"equal", "near-duplicate", "13-gram", "8-gram"}
    assert [hit["decides"] for hit in hits.values()].count(False) == 1
    assert hits["8-gram"]["ngrams"] == {"8": " ".join(LONG.split()[:8])}
    assert hits["8-gram"]["id"] in {row.id for split in ("train", "validation") for row in done.rows(split)}


def test_contamination_can_be_recorded_or_fail(prepared: Prepare) -> None:
    train = [*OTHERS, record(LONG)]
    done = prepared(train, HELD, "prepare.contamination.policy=record")
    assert LONG in done.asked("train") | done.asked("validation")
    assert done.summary["contamination"]["against"]["heldout"]["equal"] == 1
    with pytest.raises(DataError) as error:
        prepared(train, HELD, "prepare.contamination.policy=fail")
    first, total = str(error.value).splitlines()
    assert first.endswith(f"train.jsonl:41: contamination: equal of heldout: {LONG!r}")
    assert total == "1 row for training is contaminated and prepare.contamination.policy is fail"


def test_a_benchmark_file_is_protected_too(prepared: Prepare, tmp_path: Path) -> None:
    (tmp_path / "public.csv").write_text(f"id,question\n1,{LONG}\n2,something else\n")
    name = "prepare.contamination.benchmarks.public"
    given = f"+{name}={{path: {tmp_path / 'public.csv'}, fields: [question]}}"
    done = prepared([*OTHERS, record(LONG)], None, given)
    found = done.summary["contamination"]["against"]["public"]
    assert (found["num_protected"], found["equal"], found["removed"]) == (2, 1, 1)
    assert found["examples"][0]["protected"] == LONG
    with pytest.raises(DataError, match=r"public\.csv:1: no column 'qestion'.*nearest valid name: question"):
        prepared(OTHERS, None, given.replace("[question]", "[qestion]"))


def test_gsm8k_against_its_test_set(tmp_path: Path) -> None:
    options = ["sft.trainer.max_length=768", "prepare.contamination.near=false", "prepare.duplicates.near=off"]
    done = prepare(compose(["task=gsm8k", *options]).config, tmp_path)
    found = done["contamination"]["against"]["heldout"]
    assert found["ngrams"] == {"8": 94, "13": 4}
    assert found["removed"] == 4
    train = [json.loads(line) for line in (PROJECT / "data/gsm8k/train.jsonl").read_text().splitlines()]
    kept = done["splits"]["train"]["num_rows"] + done["splits"]["validation"]["num_rows"]
    assert kept == len(train) - 4 - done["duplicates"]["exact"]


def test_bounds_are_within_what_they_allow(prepared: Prepare) -> None:
    train = [*OTHERS, record("x" * 12), record("y" * 300), record("z" * 11, "long label")]
    bounds = ["min_prompt_chars=12", "max_prompt_chars=300", "max_completion_chars=9"]
    done = prepared(train, [record("hm", "a")], *(f"prepare.filters.{bound}" for bound in bounds))
    (removed,) = done.removed()
    assert removed["text"] == "z" * 11
    bounds = ["min_completion_chars=1", "max_completion_chars=9"]
    done = prepared(train, None, *(f"prepare.filters.{bound}" for bound in bounds))
    (removed,) = done.removed()
    assert removed["reason"] == "filters.max_completion_chars: 9"


def test_filters_leave_held_out_rows_alone(prepared: Prepare) -> None:
    done = prepared([*OTHERS, record("hm")], [record("hm?")], "prepare.filters.min_prompt_chars=5")
    assert done.asked("heldout") == {"hm?"}
    assert [each["text"] for each in done.removed()] == ["hm"]


def test_every_answer_is_redacted(prepared: Prepare) -> None:
    said = {"prompt": "Whom?", "chosen": "To a@example.org", "rejected": "To b@example.org, no c@example.org"}
    thought = {"role": "assistant", "reasoning_content": "d@example.org?", "content": "No."}
    turns = {"messages": [{"role": "user", "content": "Who?"}, thought]}
    held = [{"prompt": "never", "chosen": "asked", "rejected": "so"}]
    options = ["prepare.redact.kinds=[EMAIL_ADDRESS]", "prepare.validation_share=0"]
    (row,) = prepared([said], held, *options, task="my_conversations").rows("train")
    assert row.rejected == [{"role": "assistant", "content": "To <EMAIL_ADDRESS>, no <EMAIL_ADDRESS>"}]
    assert (row.answer, row.completion[0]["content"]) == ("To <EMAIL_ADDRESS>", "To <EMAIL_ADDRESS>")
    held = [{"prompt": "never", "completion": "asked"}]
    (row,) = prepared([turns], held, *options, task="my_conversations").rows("train")
    assert row.completion[0]["reasoning_content"] == "<EMAIL_ADDRESS>?"


def test_the_quarantine_is_redacted(prepared: Prepare) -> None:
    options = ["prepare.redact.kinds=[EMAIL_ADDRESS]", "prepare.on_error=quarantine"]
    done = prepared([*OTHERS, record("write to jane@example.org", "")], None, *options)
    (held,) = (done.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(held)["record"] == {"query": "write to <EMAIL_ADDRESS>", "label": ""}


def test_of_a_chain_of_copies_none_goes_for_one_that_is_gone(prepared: Prepare) -> None:
    bare = [f"{sentence(100 + n)} {sentence(200 + n)} {sentence(300 + n)}" for n in range(30)]
    chains = [[text, f"{text} quickly then moving", f"before anybody knew {text}"] for text in bare]
    done = prepared([record(text) for chain in chains for text in chain], None)
    ids = {row.prompt[0]["content"]: row.id for split in ("train", "validation") for row in done.rows(split)}
    gone = {each["text"]: each for each in done.removed()}
    assert all(each["of"].split()[0] in ids.values() for each in gone.values())
    for middle, *ends in chains:
        if middle in gone and all(end in ids for end in ends):
            assert gone[middle]["of"].split()[0] in {ids[end] for end in ends}


def test_rows_of_one_class_with_other_answers_are_no_copies(prepared: Prepare) -> None:
    prose = ["A tall ship crosses the bay at dawn.", "Ants never sleep, and nobody asks them why not."]
    near = [record(LONG, prose[0], kind="k"), record(f"{LONG} 2024", prose[1], kind="k")]
    train = [each | {"kind": "k"} for each in OTHERS] + near
    done = prepared(train, None, "task.verify=exact", "task.sources.train.label=kind")
    assert done.summary["duplicates"]["near"] == 0


def test_copies_with_other_calls_are_none(prepared: Prepare) -> None:
    def calls(text: str, name: str, value: str) -> dict[str, object]:
        tools = [{"name": name, "parameters": {"type": "object"}}]
        call = {"type": "function", "function": {"name": name, "arguments": {"value": value}}}
        turns = [{"role": "user", "content": text}, {"role": "assistant", "tool_calls": [call]}]
        return {"messages": turns, "tools": tools}

    held = [{"messages": [{"role": "user", "content": "never"}, {"role": "assistant", "content": "asked"}]}]
    train = [calls(LONG, "track", "seven of nine"), calls(f"{LONG} 2024", "forward", "home")]
    done = prepared([*train, calls(LONG, "forward", "abroad")], held, task="my_conversations")
    assert (done.summary["duplicates"]["exact"], done.summary["duplicates"]["near"]) == (0, 0)


def test_copies_among_the_held_out_are_counted_and_stay(prepared: Prepare) -> None:
    done = prepared(OTHERS, [record("never asked"), record("Never asked!")], "prepare.duplicates.near=off")
    assert (done.summary["duplicates"]["exact"], done.summary["duplicates"]["heldout_exact"]) == (0, 1)
    assert len(done.rows("heldout")) == 2


def test_the_first_set_that_decides_is_the_reason_and_deciding_hits_are_shown(
    prepared: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "public.csv").write_text(f"question\n{LONG}\n")
    given = f"+prepare.contamination.benchmarks.public={{path: {tmp_path / 'public.csv'}, fields: [question]}}"
    nine = " ".join(LONG.split()[:9])
    train = [*OTHERS, *(record(f"{nine} {sentence(80 + n)} {sentence(180 + n)}") for n in range(12)), record(LONG)]
    done = prepared(train, HELD, given, "prepare.duplicates.near=off")
    (removed,) = done.removed()
    assert removed["reason"] == "contamination: equal of heldout"
    found = done.summary["contamination"]["against"]["heldout"]
    assert [hit["decides"] for hit in found["examples"]] == [False] * 9 + [True]
    recorded = prepared(train, HELD, "prepare.duplicates.near=off", "prepare.contamination.policy=record")
    assert recorded.summary["contamination"]["removed"] == 0
    assert recorded.summary["contamination"]["against"]["heldout"]["removed"] == 0


def test_of_exact_copies_the_first_by_id_stays_wherever_it_stands(prepared: Prepare) -> None:
    done = prepared([*OTHERS, *(record(each["query"].upper() + "!", each["label"]) for each in OTHERS)], None)
    removed = done.removed()
    assert len(removed) == len(OTHERS)
    assert all(each["of"].split()[0] < each["id"] for each in removed)
    assert {each["text"].endswith("!") for each in removed} == {True, False}
