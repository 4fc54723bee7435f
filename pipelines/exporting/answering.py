"""A program in an environment of its own as a subject: it is given token ids and answers with token ids."""

import json
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import apart
from pipelines.errors import UserError
from pipelines.policy.template import render, texts
from pipelines.subjects.subject import Done, Question, Reply

PROGRAMS = Path(__file__).parent / "programs"


@dataclass
class ProgramSubject:
    """A model's files behind `programs/PROGRAM`, started anew for each call.

    `asked` is what the program is told beside prompts; `tokens` are those of the answers to the last call, the end
    token included. Where the program also cuts the prompts' texts into tokens, `unnormalised` counts the texts that it
    cuts otherwise because they aren't in NFC, into which our tokenizer brings them.
    """

    name: str
    about: Mapping[str, str]
    environment: str
    program: str
    asked: Mapping[str, Any]
    tokenizer: Any
    template: Mapping[str, Any]
    batch_size: int
    tokens: list[list[int]] = field(default_factory=list)
    unnormalised: int = 0

    def answer(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        return self._ask(questions, max_new_tokens, self.batch_size, done)

    def answer_alone(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        return self._ask(questions, max_new_tokens, 1, done)

    def sample(self, questions: Sequence[Question], max_new_tokens: int, temperature: float, done: Done) -> list[Reply]:
        raise UserError(f"{self.name}: an exported file is asked for greedy answers alone")

    def likelihoods(self, questions: Sequence[Question], options: Sequence[str], done: Done) -> NDArray[np.float64]:
        raise UserError(f"{self.name}: an exported file is asked for greedy answers alone")

    def _ask(self, questions: Sequence[Question], limit: int, batch_size: int, done: Done) -> list[Reply]:
        messages, tools = [q.messages for q in questions], [q.tools for q in questions]
        ids = render(self.tokenizer, messages, tools, self.template, prompt=True)
        written = texts(self.tokenizer, messages, tools, self.template, prompt=True)
        prompts = [{"ids": one, "text": text} for one, text in zip(ids, written, strict=True)]
        room = max(map(len, ids), default=0) + limit
        answers = self._run({"prompts": prompts, "limit": limit, "batch_size": batch_size, "context": room})
        self.unnormalised = sum(
            _cut_otherwise(self.name, text, answer, one)
            for text, answer, one in zip(written, answers, ids, strict=True)
        )
        self.tokens = [answer["tokens"] for answer in answers]
        done(len(questions))
        return [self._reply(answer, len(one)) for answer, one in zip(answers, ids, strict=True)]

    def _run(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        interpreter = apart.python(self.environment, "export.forms")
        with tempfile.TemporaryDirectory() as temporary:
            question, answer = Path(temporary) / "asked.json", Path(temporary) / "answered.json"
            question.write_text(json.dumps({**self.asked, **asked}), encoding="utf-8")
            command = [str(interpreter), "-I", str(PROGRAMS / self.program), str(question), str(answer)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(
                    f"{self.name}: {self.program} ended with code {done.returncode}:\n{done.stderr[-2000:]}"
                )
            found: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))["answers"]
        return found

    def _reply(self, answer: Mapping[str, Any], prompt_tokens: int) -> Reply:
        tokens: list[int] = answer["tokens"]
        ended = bool(tokens) and tokens[-1] in self.asked["ends"]
        return Reply(
            text=self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True),
            finished=ended,
            prompt_tokens=prompt_tokens,
            num_tokens=len(tokens),
            latency_s=answer["seconds"],
        )


def _cut_otherwise(name: str, text: str, answer: Mapping[str, Any], ids: Sequence[int]) -> bool:
    """Whether the program cuts a text otherwise that isn't in NFC. Raises UserError where it is: the file is no use."""
    if answer.get("ids") is None:
        return False
    if unicodedata.normalize("NFC", text) != text:
        return True
    raise UserError(
        f"export.forms: {name}: llama.cpp makes other tokens of {text[:80]!r} than the model was trained on: "
        f"{answer['ids'][:20]}, not {list(ids)[:20]}"
    )
