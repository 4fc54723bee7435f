"""Secrets of many kinds, planted wherever they can come in, and looked for wherever something is kept or shown.

They stand in the environment, in configuration values of every sort, in what a user's verifier prints and raises, in
what a third party prints, logs, warns and raises in the middle of a training, also in one of its several processes, and
in what an endpoint answers. Real stages run, failing ones and passing ones; afterwards everything that they left is
read: terminal output, MLflow's database and artifacts, products, work folders, spools, logs of ranks, files of a job.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import random_model, registry_secrets_third_party
from benchmarks.registry_secrets_planted import PATTERNED, core, planted
from pipelines.config.paths import PROJECT
from pipelines.secret_kinds import MASK

WINDOW, STRIDE = 12, 6  # a leak of 17 signs of a secret in a row holds one of its pieces of 12
CARD = """\
capability: The query names one of a bank's intents.
labelled_by: The authors of Banking77; one person a query.
independence: Banking77's own test part.
production: Not known, there is no production.
limits: Two dozen queries.
version: "1"
date: "2026-11-26"
"""
VERIFIER = """\
import json, os, sys
from pathlib import Path
from pipelines.tasks import Verdict

SECRETS = json.loads(Path(os.environ["TUNESMITH_PLANTED"]).read_text())
if os.environ.get("TUNESMITH_BROKEN"):
    raise ImportError("; ".join(SECRETS.values()))
_asked = []


def check(completion, row):
    if completion == row.answer and "TUNESMITH_STRICT" not in os.environ:
        return Verdict(True, completion)
    _asked.append(completion)
    for kind, secret in SECRETS.items():
        print(f"verifier printed {kind}: {secret}")
    if sum(row.id.encode()) % 2 and "TUNESMITH_STRICT" not in os.environ:
        return Verdict(False, None)
    names = list(SECRETS)
    raise LookupError(SECRETS[names[len(_asked) % len(names)]] + " is not among " + "; ".join(SECRETS.values()))
"""


class Planted:
    """A folder for what is planted, which isn't looked at, and one for all that the stages write, which is."""

    def __init__(self, temporary: Path) -> None:
        self.secrets = planted(random.Random(20261126))
        self.hidden, self.seen = temporary / "planted", temporary / "seen"
        self.hidden.mkdir()
        self.seen.mkdir()
        (self.hidden / "secrets.json").write_text(json.dumps(self.secrets), encoding="utf-8")
        (self.hidden / "own_checks.py").write_text(VERIFIER, encoding="utf-8")
        shutil.copy(registry_secrets_third_party.__file__, self.hidden / "sitecustomize.py")
        self._inputs()
        self.acts = 0

    def _inputs(self) -> None:
        shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
        random_model.write(self.seen / "model", **shape, num_attention_heads=2, head_dim=32)
        for name, part in (("train", "train"), ("heldout", "test")):
            with (PROJECT / f"data/banking77/{part}.csv").open(encoding="utf-8", newline="") as stream:
                records = list(csv.DictReader(stream))
            rows = [{"prompt": r["text"].strip(), "answer": r["category"]} for r in records[:: len(records) // 24]]
            text = "\n".join(json.dumps(row) for row in rows) + "\n"
            (self.seen / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (self.seen / "card.yaml").write_text(CARD, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Secrets that only their variables give away: one by its name, one by the configuration, one in an address."""
        return {
            "PYTHONPATH": f"{self.hidden}{os.pathsep}{PROJECT}",
            "TUNESMITH_PLANTED": str(self.hidden / "secrets.json"),
            "BILLING_SERVICE_TOKEN": self.secrets["variable"],
            "LEDGER_PASSWORD": self.secrets["variable_password"],
            "OF_THE_ENDPOINT": self.secrets["variable_named"],
            "ROWS_DATABASE": self.secrets["database_url"].replace("db.example.com", "127.0.0.1:1"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def overrides(self) -> list[str]:
        places = {name: f"{self.seen}/{name}" for name in ("rows", "adapters", "outputs")}
        return [
            "task=my_problems",
            "task.verify=own_checks:check",
            f"task.sources.train.path={self.seen}/train.jsonl",
            f"task.sources.heldout.path={self.seen}/heldout.jsonl",
            f"task.card={self.seen}/card.yaml",
            "teacher.api_key=env:OF_THE_ENDPOINT",  # which makes its value a secret
            "verifier.max_failed=0.9",
            "prepare.validation_share=0.2",
            f"model.id={self.seen}/model",
            "adapter.peft.r=4",
            "sft.trainer.max_steps=4",
            "sft.trainer.logging_steps=1",
            "sft.trainer.per_device_train_batch_size=4",
            "evaluate.max_new_tokens=4",
            "evaluate.resamples=1000",
            "evaluate.cost.rows=2",
            "tracking.system_metrics=false",
            f"tracking.uri=sqlite:///{self.seen}/mlflow.db",
            *(f"paths.{name}={place}" for name, place in places.items()),
            "package.registered_model=planted",
        ]

    def act(self, what: str, code: tuple[int, ...], *words: str, **environment: str) -> str:
        """Runs a stage; its output, which is kept beside what it wrote. Raises RuntimeError for another exit code."""
        self.acts += 1
        print(f"secrets: {what}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pipelines", *words]
        given = {**os.environ, **self.environment(), **environment}
        log = self.seen / f"terminal_{self.acts}.log"
        with log.open("wb") as stream:
            done = subprocess.run(command, env=given, stdout=stream, stderr=stream, cwd=PROJECT, check=False)
        told = log.read_text(encoding="utf-8", errors="replace")
        if done.returncode not in code:
            raise RuntimeError(f"{what}: expected exit code {code}, got {done.returncode}:\n{self.plain(told)[-3000:]}")
        return told

    def plain(self, text: str) -> str:
        """A text that may be shown whatever it holds: what was planted opens nothing, but an eye can't know."""
        for secret in self.secrets.values():
            for part in core(secret):
                text = text.replace(part, "<LEAKED>")
        return text


def measure(temporary: Path) -> dict[str, Any]:
    """How many kinds were planted and how many are found anywhere. Takes about three minutes."""
    world = Planted(temporary)
    _mistakes(world)
    with _endpoint(world) as address:
        _stages(world, address)
    leaks = dict(_leaks(world))
    for kind, places in leaks.items():
        print(f"secrets: {kind} is in {', '.join(sorted(places))}", file=sys.stderr)
    return {"secrets_planted": len(world.secrets), "secrets_leaked": len(leaks)}


def _mistakes(world: Planted) -> None:
    """Secrets in the command line, where none belongs: every one is told of, none is shown."""
    secrets, known = world.secrets, [kind for kind in PATTERNED if kind != "private_key"]
    variables = [f"+engine.env.V{number}={json.dumps(secrets[kind])}" for number, kind in enumerate(known)]
    told = world.act(
        "written out in the configuration", (2,), "job", "engine=kubernetes", *variables, *world.overrides()
    )
    _expect(told, "it holds", "engine.secrets")
    mistaken = [
        *(f"seed={json.dumps(secrets[kind])}" for kind in PATTERNED[:3]),
        f"sft.nothing={secrets['stripe']}",
        f"task.sources.train.path={json.dumps(secrets['basic_auth_url'])}",
        f"task.sources.train.path={json.dumps(secrets['signed_url'])}",
        f"+evaluate.subjects.api={{kind: endpoint, model: m, at: {json.dumps(secrets['basic_auth_url'])}}}",
        f"teacher.api_key={secrets['openai']}",
        f"task.instruction='Log in with {secrets['assignment']}'",
        f"tracking.uri={secrets['database_url']}",
        f"{secrets['github']}",
        f"model.id={secrets['hugging_face']}",
    ]
    for override in mistaken:
        world.act("a mistake with a secret in it", (1, 2), "prepare", *world.overrides(), override)
    world.act("words that are none", (2,), "prepare", "--overrides", f"'{secrets['slack']}")
    instead = [*world.overrides(), "task.sources.train.path=null"]
    away = ["task.sources.train.sql='select 1'", "task.sources.train.url=env:ROWS_DATABASE"]
    world.act("a database that is away", (2, 4), "prepare", *instead, *away)
    query = f"select '{secrets['assignment']}' from nowhere where token='{secrets['variable']}x'"
    local = [f"task.sources.train.sql={json.dumps(query)}", "task.sources.train.url='sqlite:///nowhere.db'"]
    world.act("a query with a secret", (2,), "prepare", *instead, *local)


def _stages(world: Planted, address: str) -> None:
    """Failing and passing stages; each kind has to be seen masked, or it wasn't planted."""
    mine = world.overrides()
    told = world.act("a verifier that can't be imported", (1, 2), "prepare", *mine, TUNESMITH_BROKEN="1")
    told += world.act("a verifier that raises", (1, 2, 3), "prepare", *mine, TUNESMITH_STRICT="1")
    _expect(told, MASK, "LookupError")
    world.act("rows", (0,), "prepare", *mine)
    told = world.act("a training that fails", (1,), "sft", *mine, TUNESMITH_ACT="raise")
    for kind in world.secrets:
        _expect(told, f"printed {kind}: ", f"told {kind}: ", f"logged {kind}: ", f"raised {kind}: ")
    two = ["compute.num_processes=2", "compute.per_device_train_batch_size=2"]
    told = world.act("one of two processes fails", (1,), "sft", *mine, *two, TUNESMITH_ACT="raise", TUNESMITH_RANK="1")
    _expect(told, "rank 1 failed", "raised github: ")
    world.act("a training that passes", (0,), "sft", *mine, TUNESMITH_ACT="show")
    subject = f"+evaluate.subjects.api={{kind: endpoint, at: {address}/v1, model: m, api_key: 'env:OF_THE_ENDPOINT'}}"
    judging = [subject, "evaluate.subjects.api.retries=0"]
    world.act("an evaluation whose endpoint and verifier fail", (0,), "evaluate", *mine, *judging)
    world.act("a version", (0,), "package", *mine, *judging)
    world.act("the gate", (0, 2, 3), "promote", *mine, *judging)
    many = "prepare.validation_share=0.1,0.2"
    world.act("a sweep", (0,), "prepare", "-m", *[word for word in mine if "validation" not in word], many)
    image = [
        "engine=kubernetes",
        "engine.image=registry.example.com/us:1",
        "+engine.env.MLFLOW_TRACKING_URI=http://mlflow",
    ]
    world.act("the files of a job", (0, 2), "job", *mine, *image)


def _expect(told: str, *texts: str) -> None:
    for text in texts:
        if text not in told:
            raise RuntimeError(f"a plant didn't take: {text!r} is not in\n{told[-3000:]}")


@contextmanager
def _endpoint(world: Planted) -> Iterator[str]:
    """An OpenAI-compatible server that answers, and sometimes errs with every secret that it can think of."""
    kinds = list(world.secrets)

    class Endpoint(BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            type(self).asked += 1
            if self.asked % 2 or body.get("max_tokens") == 1:
                message = {"role": "assistant", "content": "7"}
                self.reply(200, {"choices": [{"message": message, "finish_reason": "stop", "index": 0}], "usage": {}})
                return
            secret = world.secrets[kinds[self.asked // 2 % len(kinds)]]
            key = self.headers.get("Authorization", "")
            self.reply(400, {"error": {"message": f"{secret} and {key} and " + "; ".join(world.secrets.values())}})

        def reply(self, status: int, content: Mapping[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _leaks(world: Planted) -> Iterator[tuple[str, set[str]]]:
    """Kinds of which a piece is anywhere, and in which files."""
    pieces = {
        kind: {piece for part in core(secret) for piece in _pieces(part)} for kind, secret in world.secrets.items()
    }
    found: dict[str, set[str]] = {}
    files = [
        path
        for path in world.seen.rglob("*")
        if path.is_file() and "model" not in path.relative_to(world.seen).parts[:1]
    ]
    for path in files:
        name, content = path.relative_to(world.seen).as_posix(), _content(path)
        for kind, parts in pieces.items():
            if any(part in content or part in name.encode() for part in parts):
                found.setdefault(kind, set()).add(name)
    print(f"secrets: {world.acts} runs left {len(files):,} files", file=sys.stderr)
    yield from found.items()


def _pieces(secret: str) -> Iterator[bytes]:
    if len(secret) <= WINDOW:
        yield secret.encode()
    yield from (secret[at : at + WINDOW].encode() for at in range(0, len(secret) - WINDOW + 1, STRIDE))


def _content(path: Path) -> bytes:
    """The file's bytes, with the values of a table beside its compressed ones."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        content += json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
    return content


if __name__ == "__main__":
    from benchmarks.measure import run_parts

    run_parts({"secrets": measure}, sys.argv[1:])
