"""The shipped model behind two OpenAI-compatible servers answers as it does here."""

import csv
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.template import render
from pipelines.subjects.completion import Asking, most_prompt_tokens, request
from pipelines.subjects.subject import Question
from tests.subjects import serving
from tests.subjects.serving import Served
from tests.subjects.test_endpoint import FIELD, ask, subject, user


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    folder = PROJECT / "data/models/tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def queries() -> list[str]:
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as stream:
        return [record["text"] for record in csv.DictReader(stream)][::512]


@pytest.fixture(params=[serving.OWN, serving.TRANSFORMERS])
def server(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(f"{request.param}_server")
    return found


def test_an_endpoint_answers_as_the_model_here_does(
    server: Served, loaded: tuple[Any, Any], queries: list[str]
) -> None:
    asked = subject(server.at, model=server.model)
    for chosen, tokens in ((queries, 12), (queries[:2], 2)):
        prompts = render(loaded[1], [q.messages for q in user(*chosen)], [None] * len(chosen), {}, prompt=True)
        here = generate(*loaded, prompts, Decoding(tokens), batch_size=4)
        there = ask(asked, *chosen, tokens=tokens)
        assert [(r.error, r.text, r.num_tokens, r.finished) for r in there] == [
            (None, answer.text, answer.num_tokens, answer.finished) for answer in here
        ]
        assert [reply.prompt_tokens for reply in there] == [len(prompt) for prompt in prompts]
        assert len({answer.text for answer in here}) > 1


def test_the_probability_is_that_of_the_whole_answer(
    own_server: Served, loaded: tuple[Any, Any], queries: list[str]
) -> None:
    replies = ask(subject(own_server.at, model=own_server.model), *queries[:3], tokens=12)
    for query, reply in zip(queries, replies, strict=False):
        (prompt,) = render(loaded[1], [user(query)[0].messages], [None], {}, prompt=True)
        answer = loaded[1](f"{reply.text}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = loaded[0](torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
        assert reply.probability == pytest.approx(float(logprobs.sum().exp()), rel=1e-3)


def test_a_served_model_s_mistakes_are_told(server: Served) -> None:
    with pytest.raises(UserError, match=rf"^{FIELD}.*absent"):
        ask(subject(server.at, model="data/models/absent"), "Hi")


def test_no_prompt_has_more_tokens_than_it_is_taken_for(loaded: tuple[Any, Any]) -> None:
    texts = ["Hi", "", "\u0007\u0301\U0001f600" * 50, "<|im_start|>" * 20, "0123456789" * 30]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    for offered in (None, tools):
        conversations = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in texts]
        tokens = render(loaded[1], conversations, [offered] * len(texts), {}, prompt=True)
        for messages, ids in zip(conversations, tokens, strict=True):
            body = request("m", Question(messages, offered), Asking(1), 0)
            assert len(ids) <= most_prompt_tokens(body)
