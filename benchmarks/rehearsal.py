"""A release as a team makes one, rehearsed on the shipped default. `python -m benchmarks.rehearsal FOLDER`

Every step is a command of the launcher in a store of its own below FOLDER; what it printed is kept in
FOLDER/rehearsal.md, word for word but for the folder's path and most lines of progress. A step that ends with
another exit code than the one that is meant ends the rehearsal. About half an hour on 2 cores.
"""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.postgres_server import free_port
from pipelines.config.paths import PROJECT

NAME = "support_routing"
PROGRESS = re.compile(r"^\s+\w[\w ]*: [\d,]+/[\d,]+ ")
QUESTION = "My card still hasn't arrived after two weeks, what can I do?"
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Step:
    """A heading, why it is taken, the command's words, and the exit code that is meant."""

    heading: str
    why: str
    words: tuple[str, ...]
    code: int = 0


BEFORE = (
    Step(
        "A first try",
        "Twenty steps of training, to see every stage. The gate says no, and names what is missing.",
        ("finetune", "experiment=quick"),
        3,
    ),
    Step(
        "Fixed: trained to the end",
        "The same flow without the shortcut. The version passes, its bytes are copied, `staging` moves to the copy.",
        ("finetune",),
    ),
)
AFTER = (
    Step(
        "Promoted to champion",
        "The copy is what was staged and tried: only the alias moves, by a harder policy.",
        ("promote", f"model=models:/{NAME}@staging", "to=champion", "gate=champion"),
    ),
    Step(
        "A worse one",
        "A colleague trains for a third of the time. It is better than its base, but not as good as what is deployed.",
        ("finetune", "sft.trainer.max_steps=180", "seed=7"),
        3,
    ),
    Step(
        "Forced",
        "Somebody overrules the gate, which takes a reason, and is on record with who and when.",
        (
            "promote",
            f"model=models:/{NAME}@candidate",
            "to=champion",
            "gate=champion",
            "force=true",
            "reason='the label that was renamed today'",
        ),
    ),
    Step(
        "Rolled back",
        "One command returns to the version that held the alias before.",
        ("rollback", "alias=champion", "reason='misroutes more than it mends'"),
    ),
    Step(
        "Reproduced",
        "The champion is made again from what it says of itself, and compared file by file.",
        ("reproduce", f"model=models:/{NAME}@champion"),
    ),
    Step("Told", "The chain from source rows to alias, and every move.", ("lineage", f"model=models:/{NAME}@champion")),
)


class Rehearsal:
    """Runs steps and writes down what they printed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.page = folder, folder / "rehearsal.md"
        self.page.write_text("", encoding="utf-8")
        self.settings = [
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            *(f"paths.{kind}={folder / kind}" for kind in ("rows", "adapters", "outputs")),
        ]

    def take(self, step: Step) -> None:
        """Runs a step to its end. Raises RuntimeError where its exit code isn't the one that is meant."""
        print(f"{step.heading} ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            self._command(step), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        self._tell(step, done.stdout, f"exit code {done.returncode}, {time.monotonic() - begun:.0f} s")
        if done.returncode != step.code:
            raise RuntimeError(f"{step.heading}: exit code {done.returncode}, expected {step.code}\n{done.stdout}")

    def serve(self) -> None:
        """Serves what is staged, waits for the smoke test, asks one question over HTTP, and stops the server."""
        port = free_port()
        step = Step(
            "Served and smoke-tested",
            "The staged version behind an OpenAI-compatible address. Before it is ready it answers the rows that the "
            "version recorded; then a customer asks.",
            ("serve", f"model=models:/{NAME}@staging", "engine=transformers", f"serve.port={port}"),
        )
        print(f"{step.heading} ...", file=sys.stderr, flush=True)
        log = self.folder / "serve.log"
        with log.open("wb") as stream:
            server = subprocess.Popen(self._command(step), cwd=PROJECT, stdout=stream, stderr=subprocess.STDOUT)
        try:
            answer = self._ask(f"http://127.0.0.1:{port}", server)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
        asked = f"\n$ curl -s 127.0.0.1:{port}/v1/chat/completions ...  # {QUESTION}\n{answer}\n^C"
        self._tell(step, log.read_text(encoding="utf-8") + asked, f"exit code {server.returncode}")

    def _ask(self, address: str, server: "subprocess.Popen[bytes]") -> str:
        body = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}]}
        end = time.monotonic() + PATIENCE_S
        while True:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "serve.log").read_text(encoding="utf-8"))
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        # The log says that the smoke test is over; until then a question would wait in the queue.
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return str(json.loads(reply.read())["choices"][0]["message"]["content"])

    def _command(self, step: Step) -> list[str]:
        return [sys.executable, "-m", "pipelines", *step.words, *self.settings]

    def _tell(self, step: Step, output: str, end: str) -> None:
        text = output.replace(str(self.folder), "RELEASE")
        lines = [line for line in text.rstrip().splitlines() if not PROGRESS.match(line)]
        shown = "\n".join([f"$ python -m pipelines {' '.join(step.words)}", *lines, f"({end})"])
        with self.page.open("a", encoding="utf-8") as stream:
            stream.write(f"## {step.heading}\n\n{step.why}\n\n```console\n{shown}\n```\n\n")


def main(folder: Path) -> None:
    """The whole rehearsal."""
    rehearsal = Rehearsal(folder.resolve())
    for step in BEFORE:
        rehearsal.take(step)
    rehearsal.serve()
    for step in AFTER:
        rehearsal.take(step)
    print(rehearsal.page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
