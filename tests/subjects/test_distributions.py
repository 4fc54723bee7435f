"""A teacher's distributions from a server in vLLM's form, and what is found out before anybody trains on them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.errors import Unreachable, UserError
from pipelines.policy.vocabulary import probe
from pipelines.subjects import distributions
from pipelines.subjects.distributions import Distributions, Place, Read, places
from pipelines.subjects.posting import Server
from pipelines.subjects.teacher import find, scorer
from tests.subjects import openai_server

pytestmark = pytest.mark.usefixtures("one_thread")
Serve = Callable[[FastAPI], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(openai_server.in_thread(app))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")


def overrides(at: str, model: object, *more: str) -> list[str]:
    license = "teacher.license={id: MIT, conditions: null, url: null}"
    return ["model=tiny", "teacher.kind=endpoint", f"teacher.at={at}", f"teacher.model={model}", license, *more]


def served(at: str, model: object, top_k: int, *more: str) -> Distributions:
    settings = compose(overrides(at, model, *more)).config.teacher
    return Distributions(Server(settings, "teacher", 0.01, settings.patience_s), top_k)


def checked(at: str, model: object, tokenizer: Any, *more: str) -> Distributions:
    config = compose(overrides(at, model, *more)).config
    return scorer(config, find(config), tokenizer)


def app_of(answer: Callable[[dict[str, Any]], Any], tokenize: Any = None) -> FastAPI:
    """A server whose completions a test writes."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> Any:
        return {"choices": [{"text": "", "prompt_logprobs": answer(body)}], "usage": {"prompt_tokens": 9}}

    if tokenize is not None:

        @app.post("/tokenize")
        async def tokens(body: dict[str, Any]) -> Any:
            return {"tokens": tokenize(body)}

    return app


def told(body: dict[str, Any], text: Callable[[int], str]) -> list[Any]:
    """A place's own token and its neighbours."""
    return [None] + [
        {str(i): {"logprob": -1.0 - abs(i - t), "rank": 1, "decoded_token": text(i)} for i in around(t, body)}
        for t in body["prompt"][1:]
    ]


def around(token: int, body: dict[str, Any]) -> list[int]:
    begin = min(token, 3072 - body["prompt_logprobs"])
    return list(range(begin, begin + body["prompt_logprobs"]))


def test_places_are_the_model_s_own(serve: Serve, small_model: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_model).eval()
    ids = probe(tokenizer, {})
    there = checked(serve(openai_server.build(str(small_model))), small_model, tokenizer)
    found = there.score([(ids, 5), (ids[:9], 0), (ids[:30], 29)])
    assert [len(one) for one in found] == [5, 0, 29]
    with torch.inference_mode():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for at, place in zip(range(len(ids) - 5, len(ids)), found[0], strict=True):
        assert set(place.ids) == {*logp[at - 1].topk(20).indices.tolist(), ids[at]}
        assert torch.allclose(torch.tensor(place.logp), logp[at - 1][place.ids], atol=1e-5)
        assert place.logp == sorted(place.logp, reverse=True)


def test_as_many_prompts_are_under_way_as_concurrency_allows(serve: Serve) -> None:
    from asyncio import sleep

    app, seen = FastAPI(), [0, 0]

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> Any:
        seen[0] += 1
        seen[1] = max(seen)
        await sleep(0.05)
        seen[0] -= 1
        return {"choices": [{"prompt_logprobs": told(body, str)}]}

    there = served(serve(app), "m", 2, "teacher.concurrency=3")
    assert [[p.ids[0] for p in one] for one in there.score([([1, n], 1) for n in range(9)])] == [[n] for n in range(9)]
    assert seen[1] == 3


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([None], "prompt_logprobs of 1 tokens for a prompt of 2"),
        ([None, {"4": {"logprob": -1.0}}], "without token 7"),
        ([None, {"7": {"logprob": "x"}}], "are no log-probabilities"),
        ([None, {"7": {"logprob": 0.5}}], "are no log-probabilities"),
        ([None, {"7": -1.0}], "are no log-probabilities"),
        ([None, None], "without token 7"),
    ],
)
def test_what_is_no_distribution_is_told(serve: Serve, given: list[Any], reason: str) -> None:
    there = served(serve(app_of(lambda body: given)), "m", 2)
    with pytest.raises(UserError, match=rf"^teacher.at: .* tells no distributions: .*{reason}"):
        there.score([([3, 7], 1)])


def test_a_place_without_texts_is_read() -> None:
    assert places([None, {"7": {"logprob": -0.1}, "2": {"logprob": -3}}], Read([1, 7], 1)) == [
        Place([7, 2], [-0.1, -3.0], [None, None])
    ]


def test_a_server_that_refuses_or_lacks_tokens_is_told_how_to_be_started(
    serve: Serve, small_model: Path, tokenizer: Any
) -> None:
    at = serve(openai_server.build(str(small_model)))
    with pytest.raises(UserError, match=r"^distill.top_k: .* refuses 64 tokens a place .*--max-logprobs 64"):
        checked(at, small_model, tokenizer, "distill.top_k=64")
    few = serve(app_of(lambda body: told({**body, "prompt_logprobs": 5}, lambda i: str(tokenizer.decode([i])))))
    with pytest.raises(UserError, match=r"^distill.top_k: asked for 20 tokens a place, .* gives 5;.*-logprobs 20"):
        checked(few, "m", tokenizer)


def test_a_server_without_prompt_logprobs_or_completions_is_refused(serve: Serve, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"^teacher.at: .* gives no prompt_logprobs, .*vLLM.* distillation=sequence"):
        checked(serve(app_of(lambda body: None)), "m", tokenizer)
    with pytest.raises(UserError, match=r"^teacher.at: .* has no completions, or no model 'm'"):
        checked(serve(FastAPI()), "m", tokenizer)
    with pytest.raises(Unreachable, match=r"^teacher.at: nothing listens"):
        checked("http://127.0.0.1:9/v1", "m", tokenizer)


def test_another_vocabulary_is_seen_from_its_tokens_texts(serve: Serve, tokenizer: Any) -> None:
    def swapped(i: int) -> str:
        return str(tokenizer.decode([{500: 501, 501: 500}.get(i, i)]))

    ours, theirs = (repr(tokenizer.decode([i])) for i in (500, 501))
    at = serve(app_of(lambda body: told(body, swapped)))
    with pytest.raises(UserError) as error:
        checked(at, "m", tokenizer)
    assert f"token 500 is {ours} for the student, {theirs} for the teacher" in str(error.value)
    bare = serve(app_of(lambda body: told(body, tokenizer.convert_ids_to_tokens)))
    checked(bare, "m", tokenizer)  # as the vocabulary writes its tokens


def test_another_template_is_seen_where_there_is_tokenize(serve: Serve, tokenizer: Any) -> None:
    def right(i: int) -> str:
        return str(tokenizer.decode([i]))

    at = serve(app_of(lambda body: told(body, right), lambda body: [1, 2, 3]))
    with pytest.raises(
        UserError, match=r"^teacher.at: distill.method on_policy needs one chat template,.* after 1 token"
    ):
        checked(at, "m", tokenizer)


def test_a_context_that_is_too_short_is_told(serve: Serve, small_model: Path) -> None:
    there = served(serve(openai_server.build(str(small_model), max_model_len=64)), small_model, 4)
    there.check_context(64)
    with pytest.raises(
        UserError, match=r"doesn't read the 64 tokens of prompt .*maximum context length is 64.*max-model-len"
    ):
        there.check_context(65)


def test_the_key_is_in_no_message(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret-0123456789")
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> Any:
        from fastapi import HTTPException

        raise HTTPException(400, "no sk-very-secret-0123456789 here")

    there = served(serve(app), "m", 2, "teacher.api_key=env:TEACHER_KEY")
    with pytest.raises(UserError) as error:
        there.score([([1, 2], 1)])
    assert "no *** here" in str(error.value)
    assert "secret" not in repr(there.server)


def test_what_a_step_costs_is_known_before_it(serve: Serve) -> None:
    prices = ["teacher.price_in=1000", "teacher.price_out=1000", "teacher.spending_limit=0.05"]
    there = served(serve(app_of(lambda body: told(body, str))), "m", 2, *prices)
    assert there.affords(5, 9)
    assert not there.affords(6, 9)
    there.score([([1, 2, 3], 1)])
    assert there.server.spent == pytest.approx(0.004)  # its usage doesn't count what it wrote: the worst is taken
    assert not there.affords(5, 9)


def test_bytes_that_are_no_text_are_not_compared(tokenizer: Any) -> None:
    half = next(i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i]))
    assert distributions.vocabulary_difference(tokenizer, [Place([half], [-1.0], ["anything"])]) is None
    assert distributions.vocabulary_difference(tokenizer, [Place([len(tokenizer)], [-1.0], ["new"])]) is None
