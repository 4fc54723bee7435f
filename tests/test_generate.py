"""A teacher asked for real: on this machine, at an endpoint, in an environment; stopped, killed, and gone on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.dataset.rows import digest, read_rows
from pipelines.product import Product
from tests.conftest import World
from tests.generation.scripted import Answer, banker, scripted
from tests.page import SpacedPage

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = ["task.verify=tests.own_verifier:even", "verifier.workers=1"]
ANYTHING = ["task.verify=tests.own_verifier:anything", "verifier.workers=1"]
LICENSE = "teacher.license={id: MIT, conditions: null, url: null}"
SMALL = ["generate.at_once=3", "generate.limit=24"]
FAST = ["generate.max_new_tokens=6", "generate.answers=3", "generate.keep.per_row=2"]


@pytest.fixture
def given(finished: World) -> list[str]:
    """Rows of the flow that ran once; the shipped model teaches."""
    return [
        f"generate.rows={finished.product('rows')}",
        "teacher.kind=model",
        "teacher.at=data/models/tiny",
        LICENSE,
        *FAST,
        *EVEN,
    ]


@pytest.fixture
def asked(finished: World, tmp_path: Path) -> list[str]:
    """The same rows for a teacher at an endpoint."""
    cache = f"teacher.cache={tmp_path / 'cache'}"
    return [f"generate.rows={finished.product('rows')}", cache, *FAST, *ANYTHING]


def generated(world: World) -> Product:
    (found,) = (path.parent for path in world.folder.glob("rows/*-by-*/manifest.json"))
    return products.load(found)


def lines(product: Product, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in product.file(name).read_text(encoding="utf-8").splitlines()]


def last_run(world: World) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(world.store)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: mlflow.entities.Run = client.search_runs(experiments, "tags.stage = 'generate'", max_results=1)[0]
    return found


def launched(world: World, *overrides: str) -> "subprocess.Popen[bytes]":
    """The launcher as a process of its own."""
    command = [sys.executable, "-m", "pipelines", "generate", *world.overrides(), *overrides]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


ASKING = """
import sys
from pathlib import Path
from pipelines.config.compose import compose
from pipelines.dataset.rows import read_rows
from pipelines.generation import remote
from pipelines.subjects.cache import Cache
from pipelines.subjects.teacher import find
config = compose(sys.argv[1:]).config
endpoint = find(config).endpoint
with Cache(Path(config.teacher.cache), "teacher.cache") as endpoint.cache:
    remote.attempts(config, endpoint, read_rows(Path(config.generate.rows) / "train.jsonl"), print)
"""


def asking(world: World, *overrides: str) -> "subprocess.Popen[bytes]":
    """A process that does nothing but ask, as the stage does."""
    command = [sys.executable, "-c", ASKING, *world.overrides(), *overrides]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)


def killed(process: "subprocess.Popen[bytes]", when: Callable[[], bool]) -> None:
    """Kills the process as soon as that is so."""
    end = time.monotonic() + 240
    while not when():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_teachers_right_answers_are_rows_like_any_other(
    world: World, finished: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("generate", *given) == 0
    found, source = generated(world), products.load(finished.product("rows"))
    assert found.kind == "generated"
    for name in ("validation.jsonl", "heldout.jsonl"):
        assert found.file(name).read_bytes() == source.file(name).read_bytes()
    rows, of = read_rows(found.file("train.jsonl")), {row.id: row for row in read_rows(source.file("train.jsonl"))}
    assert found.about["digests"] == {**source.about["digests"], "train": digest(rows)}
    assert found.about["num_rows"] == {**source.about["num_rows"], "train": len(rows)}
    assert found.about["rows_digest"] == source.digest
    teacher = found.about["teacher"]["digest"]
    assert found.about["teacher"]["license"] == {"id": "MIT", "conditions": None, "url": None}
    told, counts = lines(found, "provenance.jsonl"), found.about["generated"]
    assert [one["id"] for one in told] == [row.id for row in rows] == sorted(row.id for row in rows)
    taught = Counter(one["row"] for one in told if one["by"] == "teacher")
    assert set(taught.values()) <= {1, 2}
    for one, row in zip(told, rows, strict=True):
        asked = of[one["row"]]
        assert (row.prompt, row.answer, row.label, row.group) == (asked.prompt, asked.answer, asked.label, asked.group)
        if one["by"] == "teacher":
            assert len(row.completion[0]["content"]) % 2 == 0
            assert row.source == f"teacher model {teacher[7:19]}:{asked.id}.{one['try']}"
            assert (one["teacher"], one["temperature"], one["verdict"]) == (teacher, 1.0, True)
        else:
            assert row == asked
    apart = lines(found, "rejected.jsonl")
    assert Counter(one["reason"] for one in apart) == counts["failures"]
    assert len(apart) + sum(taught.values()) == counts["num_asked"] == 3 * len(of)
    assert counts["rows"] == {"taught": len(taught), "own": len(of) - len(taught), "missing": 0, "unasked": 0}
    run = last_run(world)
    assert run.data.metrics["generate/num_kept"] == counts["num_kept"] == sum(taught.values())
    assert run.inputs.dataset_inputs[0].dataset.digest == source.about["digests"]["train"][:36]
    page = SpacedPage(found.file("report.html").read_text(encoding="utf-8"))
    assert f"{counts['num_kept']} kept of {counts['num_asked']} asked" in page.words
    assert all(link.startswith("data:image/png") for link in page.links)
    assert not list(found.folder.glob("answers*"))
    assert world.run("sft", f"sft.rows={found.folder}", "sft.trainer.max_steps=1") == 0
    capsys.readouterr()
    assert world.run("generate", *given) == 0
    assert "generate: reused" in capsys.readouterr().out


def test_a_run_killed_between_batches_goes_on_to_the_same_rows(world: World, given: list[str], tmp_path: Path) -> None:
    whole = World(tmp_path / "whole", world.store, world.model, world.rows)
    assert whole.run("generate", *given, *SMALL) == 0
    process = launched(world, *given, *SMALL)
    killed(process, lambda: len(list(world.folder.glob("rows/*.partial/answers/*.json"))) >= 3)
    (batches,) = world.folder.glob("rows/*.partial/answers")
    assert len(list(batches.glob("*.json"))) < 8
    (batches / "00000000.json").rename(tmp_path / "first")
    marked = json.loads((tmp_path / "first").read_text())
    marked[0] |= {"text": "marked by the test", "finished": True}  # what is there is read, not made again
    (batches / "00000000.json").write_text(json.dumps(marked))
    assert world.run("generate", *given, *SMALL) == 0
    one, other = (lines(generated(w), "provenance.jsonl") for w in (world, whole))
    first = marked[0]["row"]
    assert [r for r in one if r["row"] != first] == [r for r in other if r["row"] != first]
    assert "marked by the test" in generated(world).file("train.jsonl").read_text()


def test_the_same_inputs_give_the_same_product_and_another_seed_another(
    world: World, given: list[str], tmp_path: Path
) -> None:
    digests = []
    for name, seed in (("a", "seed=1"), ("b", "seed=1"), ("c", "seed=2")):
        other = World(tmp_path / name, world.store, world.model, world.rows)
        assert other.run("generate", *given, seed, "generate.limit=10", "generate.missing=drop") == 0
        digests.append(generated(other).digest)
        assert {one["by"] for one in lines(generated(other), "provenance.jsonl")} == {"teacher"}
        assert generated(other).about["generated"]["num_asked"] == 30
    assert digests[0] == digests[1] != digests[2]


def slow(body: dict[str, Any]) -> Answer:
    time.sleep(0.02)
    return f"answer {body['seed']}"


def test_a_killed_run_pays_an_endpoint_for_nothing_twice(world: World, asked: list[str]) -> None:
    with scripted(slow) as server:
        priced = [*server.overrides, "teacher.price_in=1000", "teacher.price_out=1000", "teacher.concurrency=4"]
        killed(asking(world, *asked, *priced), lambda: len(server.bodies) >= 60)
        time.sleep(0.2)
        before = len(server.bodies)
        assert before < 200
        assert world.run("generate", *asked, *priced) == 0
        found = generated(world)
        counts, told = found.about["generated"], lines(found, "provenance.jsonl")
        total = counts["num_asked"]
        again = [key for key, count in Counter(server.keys()).items() if count > 1]
        assert len(again) <= 4  # under way when the process was killed: nobody has had these answers
        assert len(set(server.keys())) == total
        assert counts["num_cached"] == before - len(again)
        assert counts["cost"] == pytest.approx((total - counts["num_cached"]) * 0.015 + 0.015)  # and a probe
        assert {one["cost"] for one in told if one["cached"]} == {0.0}
        assert {one["cost"] for one in told if not one["cached"] and one["by"] == "teacher"} == {0.015}
    # The server is gone, and all of it lies in the cache.
    assert world.run("generate", *asked, *priced, "generate.keep.per_row=1") == 0


def test_at_the_spending_limit_it_stops_with_what_it_has(
    world: World, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(lambda body: f"answer {body['seed']}") as server:
        prices = ["teacher.price_in=1000", "teacher.price_out=1000", "teacher.concurrency=4"]
        assert world.run("generate", *asked, *server.overrides, *prices, "teacher.spending_limit=1") == 0
        found = generated(world)
        counts = found.about["generated"]
        assert counts["cost"] <= 1
        assert 0 < counts["num_asked"] < counts["num_tries"]
        assert counts["failures"]["unasked"] == counts["num_tries"] - counts["num_asked"]
        assert found.about["limited"] == "teacher.spending_limit of $1 reached"
        assert "stopped early: teacher.spending_limit of $1 reached" in capsys.readouterr().out
        assert "Stopped early" in found.file("report.html").read_text(encoding="utf-8")
        assert counts["rows"]["unasked"] > 0
        assert counts["num_rows"] == len(read_rows(found.file("train.jsonl"))) == counts["num_kept"]
        tiny = ["teacher.spending_limit=0.15", f"teacher.cache={world.folder / 'other'}"]
        assert world.run("generate", *asked, *server.overrides, *prices, *tiny) == 2
        assert "unasked" in capsys.readouterr().err


def test_a_server_that_stays_away_ends_the_run_and_what_it_said_is_kept(
    world: World, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [False]

    def answer(body: dict[str, Any]) -> Answer:
        gone[0] = gone[0] or len(server.bodies) >= 30
        return 503 if gone[0] else f"answer {body['seed']}"

    with scripted(answer) as server:
        patience = [*server.overrides, "teacher.patience_s=0.3", "teacher.concurrency=4"]
        assert world.run("generate", *asked, *patience) == 4
        assert "teacher.patience_s=0.3 seconds: HTTP 503" in capsys.readouterr().err
        assert len(server.bodies) >= 30
        server.answer = lambda body: f"answer {body['seed']}"
        assert world.run("generate", *asked, *patience) == 0
        assert len(server.keys()) == len(set(server.keys())) == generated(world).about["generated"]["num_asked"]


def test_a_teacher_that_answers_empty_or_out_of_form_is_counted_and_kept_apart(world: World, asked: list[str]) -> None:
    said: list[Answer] = ["fine", " ", {"content": None}, "<|im_end|> no", 400, "<think>endless"]

    def answer(body: dict[str, Any]) -> Answer:
        if body["messages"][-1]["content"] == "Hi":
            return "Hi"
        return said[len(body["messages"][-1]["content"]) % len(said)]

    with scripted(answer) as server:
        one_try = ["generate.answers=1", "generate.keep.per_row=1", "generate.missing=drop", "teacher.retries=0"]
        assert world.run("generate", *asked, *server.overrides, *one_try) == 0
    found = generated(world)
    of = read_rows(products.load(Path(asked[0].partition("=")[2])).file("train.jsonl"))
    kinds = Counter(len(row.prompt[-1]["content"]) % len(said) for row in of)
    counts = found.about["generated"]
    assert counts["num_kept"] == kinds[0] == len(read_rows(found.file("train.jsonl")))
    assert counts["failures"] == {"error": kinds[4], "empty": kinds[1] + kinds[2], "malformed": kinds[3] + kinds[5]}
    apart = {one["reason"]: one for one in lines(found, "rejected.jsonl")}
    assert "HTTP 400" in apart["error"]["detail"]
    assert apart["malformed"]["begins"] in ("<|im_end|> no", "<think>endless")


def test_a_judge_has_the_last_word(world: World, asked: list[str]) -> None:
    def judge(body: dict[str, Any]) -> Answer:
        text = str(body["messages"][-1]["content"])
        return "yes" if "answer good" in text else "no" if "answer bad" in text else "well"

    def answer(body: dict[str, Any]) -> Answer:
        return f"answer {('good', 'bad', 'odd')[body['seed'] % 3]} {body['seed']}"

    with scripted(judge) as other, scripted(answer) as server:
        judged = [f"generate.judge.at=http://127.0.0.1:{other.server_port}/v1", "generate.judge.model=judge"]
        assert world.run("generate", *asked, *server.overrides, *judged) == 0
        counts, told = generated(world).about["generated"], lines(generated(world), "provenance.jsonl")
        kinds = Counter(body["seed"] % 3 for body in server.bodies)
        assert len(other.bodies) == counts["num_asked"] == sum(kinds.values())
    assert counts["failures"] == {"judge says no": kinds[1], "judge unread": kinds[2]}
    assert {one["judge"] for one in told if one["by"] == "teacher"} == {"yes"}


BANK = [
    "task=bank",
    "task.sources.train.count=28",
    "task.sources.heldout.count=7",
    "prepare.validation_share=0",
    "prepare.max_length=1024",
]


def test_a_teacher_in_an_environment_writes_trajectories(world: World) -> None:
    own = [o for o in world.overrides() if not o.startswith(("task", "prepare"))]
    world.overrides = lambda: [*own, *BANK, "verifier.workers=1", f"teacher.cache={world.folder / 'cache'}"]  # type: ignore[method-assign]
    assert world.run("prepare") == 0
    with scripted(banker(28, 1)) as server:
        settings = [*server.overrides, "generate.answers=2", "generate.missing=drop"]
        assert world.run("generate", *settings) == 0
        (folder,) = (path.parent for path in world.folder.glob("rows/bank-by-endpoint-*/manifest.json"))
        found = products.load(folder)
        assert len(server.keys()) == len(set(server.keys()))
        turns = len(server.bodies)
        assert world.run("generate", *settings, "generate.keep.per_row=2") == 0
        assert len(server.bodies) == turns  # every turn lay in the cache
    (source,) = (path.parent for path in world.folder.glob("rows/bank-????????????/manifest.json"))
    of = {row.id: row for row in read_rows(source / "train.jsonl")}
    kinds = Counter(row.label for row in of.values())
    counts, told = found.about["generated"], lines(found, "provenance.jsonl")
    right = sum(kinds[kind] for kind in ("freeze", "limit", "transfer", "several"))
    assert counts["failures"] == {
        "unfinished": 2 * kinds["if"],
        "malformed": 2 * kinds["raise"],
        "wrong state": 2 * kinds["decline"],
        "duplicate": right,
    }
    assert counts["num_kept"] == right
    for one, row in zip(told, read_rows(found.file("train.jsonl")), strict=True):
        assert row.completion == of[one["row"]].completion
        assert row.tools == of[one["row"]].tools
        spoken = sum(message["role"] == "assistant" for message in row.completion)
        assert (one["num_tokens"], one["prompt_tokens"]) == (5 * spoken, 10 * spoken)
    page = SpacedPage(found.file("report.html").read_text(encoding="utf-8"))
    assert "Cost per kept trajectory" in page.words
    assert "[calls] transfer {" in page.words
    assert f"Rows left out, because none of the teacher's answers was kept: {len(of) - right}." in page.words
    assert counts["num_turns"] == turns


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["teacher.kind=null", "teacher.at=null"], "teacher.kind: nobody to learn from"),
        (["teacher.kind=adapter", "teacher.at=data"], "manifest.json"),
        (["teacher.license=null"], "teacher.license: nothing says"),
        (["teacher.kind=model", "teacher.at=data/nothing"], "teacher.at"),
        (["task.verify=none"], "generate.keep.verified: task my_routing has no verify"),
        (["generate.judge.at=http://h/v1", "generate.judge.model=m", "generate.judge.prompt=Well?"], "{question}"),
        (["generate.max_new_tokens=1020"], "is over the 1024 tokens of the teacher's context"),
        (["task.verify=tests.own_verifier:raises"], "have no verdict"),
        (
            ["generate.top_k=4", "teacher.kind=endpoint", "teacher.at=http://h/v1", "teacher.model=m"],
            "generate.top_k: an endpoint tells its words",
        ),
        (
            ["teacher.kind=endpoint", "teacher.at=http://127.0.0.1:9/v1", "teacher.model=m"],
            "teacher.at: nothing listens",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_by_its_field(
    world: World, given: list[str], overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"teacher.cache={world.folder / 'cache'}"
    assert world.run("generate", *given, cache, *overrides) in (2, 4)
    assert told in capsys.readouterr().err
    assert not list(world.folder.glob("rows/*/manifest.json"))


def test_rows_may_keep_their_completions_and_only_get_distributions(world: World, given: list[str]) -> None:
    assert world.run("generate", *given, "generate.top_k=4", "generate.answers=null", "generate.limit=6") == 0
    found, source = generated(world), Path(given[0].partition("=")[2])
    rows = read_rows(found.file("train.jsonl"))
    of = {row.id: row for row in read_rows(source / "train.jsonl")}
    assert len(rows) == 6
    assert all(row == of[row.id] for row in rows)
    assert {one["by"] for one in lines(found, "provenance.jsonl")} == {"own"}
    assert (found.about["logits"]["rows"], found.about["logits"]["top_k"]) == (6, 4)
    assert "distributions over the rows" in SpacedPage(found.file("report.html").read_text(encoding="utf-8")).words


def test_a_teacher_whose_tokens_differ_stores_no_distributions(
    world: World, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.model)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "other")
    AutoModelForCausalLM.from_pretrained(world.model).save_pretrained(tmp_path / "other")
    other = ["teacher.kind=model", f"teacher.at={tmp_path / 'other'}"]
    assert world.run("generate", *given, *other, "generate.top_k=4") == 2
    error = capsys.readouterr().err
    assert "generate.top_k: " in error
    assert "for the teacher" in error
