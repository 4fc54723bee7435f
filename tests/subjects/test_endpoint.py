"""Endpoints over real HTTP, at a server that misbehaves as it is told."""

import math
import signal
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.config.block import EndpointFields
from pipelines.dataset.row import Message
from pipelines.errors import Stopped, Unreachable, UserError
from pipelines.subjects.endpoint import GIVE_UP_AFTER, Endpoint, EndpointSubject
from pipelines.subjects.posting import pause_s, retry_after
from pipelines.subjects.subject import Question, Reply
from pipelines.subjects.verbalised import HOW_SURE, stated, verbalised
from tests.subjects import serving
from tests.subjects.faulty_server import RIGHT_KEY
from tests.subjects.serving import Faulty

FIELD = "evaluate.subjects.api"
PLAIN = "one two three four"
SHORT_S = 1.0  # within which a busy machine still answers
DOLLAR = 1e6  # a token's price of one dollar, as prices are given


def fields(at: str, **changes: Any) -> EndpointFields:
    given: dict[str, Any] = {
        "at": at,
        "model": "plain",
        "api_key": None,
        "concurrency": 4,
        "timeout_s": 10.0,
        "retries": 0,
        "price_in": None,
        "price_out": None,
        "spending_limit": None,
    }
    return EndpointFields(**(given | changes))


def subject(at: str, **changes: Any) -> EndpointSubject:
    return EndpointSubject("api", Endpoint(fields(at, **changes), FIELD, first_pause_s=0.01), seed=7)


def user(*texts: str) -> list[Question]:
    return [Question([{"role": "user", "content": text}]) for text in texts]


def nothing(count: int) -> None:
    pass


def ask(asked: EndpointSubject, *texts: str, tokens: int = 8) -> list[Reply]:
    return asked.answer(user(*texts), tokens, nothing)


# --- what is sent and what comes back -----------------------------------------------------------


def test_a_reply_holds_what_the_server_says(faulty: Faulty) -> None:
    asked = subject(faulty.at, price_in=2.0, price_out=10.0)
    (reply,) = ask(asked, "<<say:a b c>>")
    assert (reply.text, reply.error, reply.finished) == ("a b c", None, True)
    assert (reply.prompt_tokens, reply.num_tokens) == (1, 3)
    assert reply.cost == pytest.approx((2.0 * 1 + 10.0 * 3) / 1e6)
    assert reply.latency_s is not None
    assert reply.latency_s > 0
    assert reply.probability == pytest.approx(math.exp(-1.5))
    (cut,) = ask(asked, "<<say:a b c>>", tokens=2)
    assert (cut.text, cut.finished, cut.num_tokens) == ("a b", False, 2)


def test_a_greedy_request_says_so(faulty: Faulty) -> None:
    ask(subject(faulty.at), "Where is my card?")
    assert faulty.seen()["bodies"][-1] == {
        "model": "plain",
        "messages": [{"role": "user", "content": "Where is my card?"}],
        "max_tokens": 8,
        "temperature": 0.0,
        "seed": 7,
        "stream": False,
        "logprobs": True,
    }


def test_samples_have_a_seed_each_and_the_same_ones_again(faulty: Faulty) -> None:
    asked = subject(faulty.at)
    for _ in range(2):
        assert [r.text for r in asked.sample(user(*"xyz"), 8, 0.8, nothing)] == [PLAIN] * 3
    bodies = faulty.seen()["bodies"][1:]
    assert [sorted(b["seed"] for b in bodies[i : i + 3]) for i in (0, 3)] == [[7, 8, 9]] * 2
    assert {(b["temperature"], b["top_p"]) for b in bodies} == {(0.8, 1.0)}


def test_without_prices_or_a_count_nothing_has_a_cost(faulty: Faulty) -> None:
    assert ask(subject(faulty.at), "Hi")[0].cost is None
    priced = subject(faulty.at, price_in=1.0, price_out=1.0)
    (reply,) = ask(priced, "<<unmetered>>")
    assert (reply.text, reply.cost, reply.num_tokens) == ("one two", None, None)
    assert priced.endpoint.spent > 0


def test_calls_become_text_and_tools_are_sent(faulty: Faulty) -> None:
    call = '{"function": {"name": "look", "arguments": "{\\"at\\": [1]}"}}'
    broken = '{"function": {"name": "look", "arguments": "{at"}}'
    message = f'<<message:{{"content": "So:", "tool_calls": [{call}, {broken}]}}>>'
    bare = {"name": "look", "parameters": {"type": "object"}}
    tools = [bare, {"type": "function", "function": {"name": "go"}}]
    (reply,) = subject(faulty.at).answer([Question([{"role": "user", "content": message}], tools)], 8, nothing)
    assert reply.text == (
        'So:\n<tool_call>{"name": "look", "arguments": {"at": [1]}}</tool_call>\n'
        '<tool_call>{"name": "look", "arguments": "{at"}</tool_call>'
    )
    assert reply.finished
    assert faulty.seen()["bodies"][-1]["tools"] == [
        {"type": "function", "function": bare},
        {"type": "function", "function": {"name": "go"}},
    ]


def test_calls_of_a_conversation_are_sent_in_the_wire_form(faulty: Faulty) -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"x": 1}}, {"function": {"name": "b"}}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    subject(faulty.at).answer([Question(messages)], 8, nothing)
    sent = faulty.seen()["bodies"][-1]["messages"]
    assert [(c["id"], c["type"], c["function"]) for c in sent[1]["tool_calls"]] == [
        ("call_1_0", "function", {"name": "a", "arguments": '{"x": 1}'}),
        ("call_1_1", "function", {"name": "b", "arguments": "{}"}),
    ]
    assert [message.get("tool_call_id") for message in sent] == [None, None, "call_1_0", "call_1_1"]


def test_a_refusal_in_its_own_field_is_an_answer(faulty: Faulty) -> None:
    (reply,) = ask(subject(faulty.at), '<<message:{"content": null, "refusal": "I will not."}>>')
    assert reply.text == "I will not."


def test_about_says_what_answers_and_no_query(faulty: Faulty) -> None:
    asked = subject(f"{faulty.at}?tag=secret", price_in=0.5)
    ask(asked, "Hi")
    assert asked.about == {
        "endpoint": faulty.at,
        "model": "plain",
        "reported model": "plain-2026",
        "system fingerprint": "fp_1",
        "price in": "$0.5 per million tokens",
    }


# --- many at once -------------------------------------------------------------------------------


def test_as_many_requests_as_it_says_are_under_way(faulty: Faulty) -> None:
    replies = ask(subject(faulty.at, concurrency=5), *[f"{i} <<together:5>>" for i in range(20)])
    assert [reply.text for reply in replies] == ["together"] * 20
    assert faulty.seen()["most_at_once"] == 5


def test_alone_means_one_at_a_time(faulty: Faulty) -> None:
    replies = subject(faulty.at).answer_alone(user(*[f"{i} <<slow:0.1>>" for i in range(4)]), 8, nothing)
    assert all(reply.latency_s for reply in replies)
    assert faulty.seen()["most_at_once"] == 1


def test_a_slow_row_keeps_nobody_waiting_and_its_place(faulty: Faulty) -> None:
    told: list[int] = []
    texts = ["<<last:10>>", *[f"<<say:{i}>>" for i in range(9)]]  # nine others and the check
    replies = subject(faulty.at, concurrency=2).answer(user(*texts), 8, told.append)
    assert [reply.text for reply in replies] == ["last", *[str(i) for i in range(9)]]
    assert told == [1] * 10


def test_nothing_to_ask_is_nothing(faulty: Faulty) -> None:
    assert ask(subject(faulty.at)) == []


# --- failures of a row --------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["http:500", "http:503", "http:408", "http:429", "drop", "half"])
def test_what_may_pass_is_tried_again(faulty: Faulty, step: str) -> None:
    replies = ask(subject(faulty.at, retries=2), f"<<{step}|{step}|say:ok>>", "Hi")
    assert [reply.text for reply in replies] == ["ok", PLAIN]


def test_a_timeout_is_tried_again(faulty: Faulty) -> None:
    (reply,) = ask(subject(faulty.at, retries=1, timeout_s=SHORT_S), "<<slow:4|say:ok>>")
    assert reply.text == "ok"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("http:500", "HTTP 500: told to say 500 (2 tries)"),
        ("http:429", "HTTP 429: told to say 429 (2 tries)"),
        ("http:400", "HTTP 400: told to say 400"),
        ("http:413", "HTTP 413: told to say 413"),
        ("slow:4", "no answer within 1 s (2 tries)"),
        ("drip:4", "no answer within 1 s (2 tries)"),
        ("drop", "the connection broke: Server disconnected without sending a response. (2 tries)"),
        ("raw:", "no JSON: an empty reply"),
        ("raw:<html>\nBad gateway", "no JSON: <html> Bad gateway"),
        ('raw:{"choices": [', 'no JSON: {"choices": ['),
        ("raw:[1]", "a JSON list, expected an object"),
        ("raw:{}", "no choices"),
        ('raw:{"choices": []}', "no choices"),
        ('raw:{"choices": {"0": 1}}', "no choices"),
        ('raw:{"error": {"message": "out of memory"}}', "no choices: out of memory"),
        ('raw:{"choices": [{"text": "old"}]}', "the first choice holds no message"),
        ("content:null", "null content (finish_reason stop)"),
        ("content:5", "the content is of type int, expected text"),
        ('content:["a"]', "the content is of type list, expected text"),
        ('content:"\\ud800"', "the text holds a lone surrogate"),
        ('message:{"tool_calls": [{"function": {}}]}', "a tool call holds no function's name"),
        ('message:{"tool_calls": "look"}', "tool_calls is of type str, expected a list"),
        ("raw:" + "[" * 5000, "no JSON: " + "[" * 157 + "..."),
    ],
)
def test_a_bad_reply_is_an_error_of_its_row_alone(faulty: Faulty, step: str, reason: str) -> None:
    bad, good = ask(subject(faulty.at, retries=1, timeout_s=SHORT_S), f"<<{step}>>", "Hi")
    assert (bad.text, bad.error) == (None, reason)
    assert (bad.num_tokens, bad.latency_s, bad.cost, bad.probability) == (None, None, None, None)
    assert (good.text, good.error) == (PLAIN, None)


def test_odd_counts_and_probabilities_are_not_known(faulty: Faulty) -> None:
    choice = '{"message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": [{"logprob": "a"}]}}'
    (reply,) = ask(
        subject(faulty.at),
        f'<<raw:{{"choices": [{choice}], "usage": {{"prompt_tokens": "9", "completion_tokens": -1}}}}>>',
    )
    assert reply == Reply("x", latency_s=reply.latency_s)
    half = '<<raw:{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9}}>>'
    (reply,) = ask(subject(faulty.at, price_in=1.0, price_out=1.0), half)
    assert (reply.text, reply.prompt_tokens, reply.num_tokens, reply.cost) == ("x", 9, None, None)


def test_it_comes_back_when_it_is_told_to(faulty: Faulty) -> None:
    # One retry: whoever comes before the second is over meets the limit again.
    (reply,) = ask(subject(faulty.at, retries=1), "<<busy:1>>")
    assert reply.text == "in time"


def test_retry_after_in_both_forms_and_never_for_ever() -> None:
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after("2.5", now) == 2.5
    assert retry_after("Sun, 01 Mar 2026 12:00:20 GMT", now) == 20.0
    assert retry_after("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0.0
    assert retry_after("86400", now) == 60.0
    assert [retry_after(odd, now) for odd in (None, "", "soon", "nan", "-3")] == [0.0] * 5


def test_pauses_double_and_differ_by_row() -> None:
    pauses = [[pause_s(0.5, done, row) for done in range(40)] for row in ("7 0", "7 1")]
    for row in pauses:
        assert all(
            whole / 2 <= pause <= whole for pause, whole in zip(row, [0.5, 1, 2, 4, 8, 16, *[30] * 34], strict=True)
        )
        assert len({pause / min(30, 0.5 * 2**done) for done, pause in enumerate(row)}) == 40
    assert pauses[0] == [pause_s(0.5, done, "7 0") for done in range(40)]
    assert not set(pauses[0]) & set(pauses[1])


def test_timeouts_leave_no_connection_behind(faulty: Faulty) -> None:
    texts = [f"{i} <<slow:4>>" for i in range(4)]
    replies = ask(subject(faulty.at, timeout_s=SHORT_S, concurrency=2), *texts, "Hi", "Ho")
    assert [reply.error for reply in replies] == ["no answer within 1 s"] * 4 + [None] * 2


def test_a_server_that_died_is_given_up(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{i} <<http:500>>" for i in range(GIVE_UP_AFTER + 5)]
    replies = ask(subject(faulty.at, concurrency=1), *texts)
    assert [reply.error for reply in replies[GIVE_UP_AFTER:]] == ["not sent: the 25 rows before had all failed"] * 5
    assert len(faulty.seen()["bodies"]) == 1 + GIVE_UP_AFTER
    assert capsys.readouterr().out == (
        f"  {FIELD}: given up after 25 rows in a row failed: HTTP 500: told to say 500\n"
    )


def test_bad_rows_are_no_dead_server(faulty: Faulty) -> None:
    texts = [f"{i} <<http:400>>" for i in range(GIVE_UP_AFTER + 5)]
    assert ask(subject(faulty.at), *texts, "Hi")[-1].text == PLAIN


def test_a_row_that_is_answered_gives_the_server_another_chance(faulty: Faulty) -> None:
    texts = [f"{i} <<http:500>>" for i in range(GIVE_UP_AFTER - 1)]
    replies = ask(subject(faulty.at, concurrency=1), *texts, "Hi", *texts, "Ho")
    assert [reply.text for reply in replies if reply.error is None] == [PLAIN] * 2


def test_what_all_rows_share_is_said_once(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    asked = subject(faulty.at)
    ask(asked, *[f"{i} <<http:400>>" for i in range(4)])
    assert capsys.readouterr().out == f"  {FIELD}: all 4 rows failed the same way: HTTP 400: told to say 400\n"
    ask(asked, "<<http:400>>", "<<content:null>>")
    ask(asked, "<<http:400>>", "Hi")
    ask(asked, "Hi", "Ho")
    ask(asked, "<<http:400>>")
    assert capsys.readouterr().out == ""


# --- what the server refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "refused", "probability"),
    [("strict", ["logprobs"], None), ("vague", ["logprobs", "seed"], None), ("modern", ["max_tokens"], math.exp(-2))],
)
def test_a_refused_field_is_left_out_from_then_on(
    faulty: Faulty, model: str, refused: list[str], probability: float | None
) -> None:
    asked = subject(faulty.at, model=model, concurrency=1)
    replies = ask(asked, *"abcd")
    assert [reply.text for reply in replies] == [PLAIN] * 4
    assert [reply.probability for reply in replies] == [probability and pytest.approx(probability)] * 4
    assert asked.about["refuses"] == ", ".join(refused)
    bodies = faulty.seen()["bodies"]
    assert all(not set(refused) & set(body) for body in bodies[-3:])
    assert [body.get("max_completion_tokens") for body in bodies[-3:]] == [8 if model == "modern" else None] * 3


def test_a_bad_row_costs_no_other_its_probability(faulty: Faulty) -> None:
    asked = subject(faulty.at, concurrency=1)
    bad, good = ask(asked, "<<http:400>>", "Hi")
    assert bad.error == "HTTP 400: told to say 400"
    assert good.probability == pytest.approx(math.exp(-2))
    assert "refuses" not in asked.about


# --- before the first row -----------------------------------------------------------------------


def mistake(at: str, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(subject(at, **changes), *[str(i) for i in range(50)])
    return caught.value


def test_nobody_listening_is_told_at_once() -> None:
    at = f"http://127.0.0.1:{serving.free_port()}/v1"
    error = mistake(at, retries=1000)
    assert isinstance(error, Unreachable)
    assert str(error).startswith(f"{FIELD}.at: nothing listens at {at}: no connection")


@pytest.mark.parametrize(
    ("model", "kind", "message", "requests"),
    [
        ("missing", UserError, f"{FIELD}.at: AT has no chat/completions, or no model 'missing': HTTP 404", 1),
        ("page", UserError, f"{FIELD}.at: expected an OpenAI-compatible endpoint at AT, got no JSON: <!doctype", 1),
        ("moved", UserError, f"{FIELD}.at: AT answers from elsewhere; name that address: HTTP 308 to https://el", 1),
        ("down", Unreachable, f"{FIELD}.at: AT doesn't answer: HTTP 503: overloaded (3 tries)", 3),
        ("warm", UserError, f"{FIELD}: AT refuses a request for one token of 'warm': HTTP 400: Unsupported value:", 2),
        ("locked", UserError, f"{FIELD}.api_key: AT wants a key; set env:NAME: HTTP 401", 1),
    ],
)
def test_what_is_wrong_with_the_endpoint_is_told_at_once(
    faulty: Faulty, model: str, kind: type[UserError], message: str, requests: int
) -> None:
    error = mistake(faulty.at, model=model, retries=2)
    assert type(error) is kind
    assert str(error).startswith(message.replace("AT", faulty.at))
    assert len(faulty.seen()["bodies"]) == requests


def test_another_path_is_told(faulty: Faulty) -> None:
    at = faulty.at.removesuffix("/v1")
    assert str(mistake(at)).startswith(f"{FIELD}.at: {at} has no chat/completions, or no model 'plain': HTTP 404: Not")


def test_a_model_that_says_nothing_in_one_token_is_there(faulty: Faulty) -> None:
    subject(faulty.at, model="wordless").endpoint.check()


def test_it_is_checked_once_and_by_one_token(faulty: Faulty) -> None:
    asked = subject(faulty.at)
    asked.endpoint.check()
    ask(asked, "Hi")
    ask(asked, "Ho")
    assert [body["max_tokens"] for body in faulty.seen()["bodies"]] == [1, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at": None}, ".at: expected an address such as https://api.example.com/v1, got null"),
        ({"at": "api.example.com/v1"}, ".at: expected an address such as https://api.example.com/v1, got api.exam"),
        ({"at": "http://h:99999/v1?k=secret"}, ".at: expected an address such as https://api.example.com/v1, got h"),
        ({"at": "http://me:secret@h/v1"}, ".at: it holds a password, which would be kept with every run"),
        ({"at": "http://h/v1/chat/completions"}, ".at: expected an address such as https://api.example.com/v1; leave"),
        ({"model": None}, ".model: expected the name that the endpoint knows its model by, got null"),
        ({"api_key": "env:NO_SUCH_KEY"}, ".api_key: the environment variable NO_SUCH_KEY isn't set"),
        ({"api_key": "env:ODD_KEY"}, ".api_key: the environment variable ODD_KEY holds signs that no header may hold"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("ODD_KEY", "secret\nkey")
    with pytest.raises(UserError) as caught:
        Endpoint(fields(**({"at": "http://h/v1"} | changes)), FIELD)
    assert str(caught.value).startswith(FIELD + message)
    assert "secret" not in str(caught.value)


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", RIGHT_KEY)
    asked = subject(faulty.at, model="locked", api_key="env:API_KEY")
    assert ask(asked, "Hi")[0].text == PLAIN
    assert set(faulty.seen()["keys"]) == {f"Bearer {RIGHT_KEY}"}
    assert RIGHT_KEY not in f"{asked!r} {asked.endpoint!r} {asked.about}"


def test_no_key_is_no_header(faulty: Faulty) -> None:
    ask(subject(faulty.at), "Hi")
    assert set(faulty.seen()["keys"]) == {None}


@pytest.mark.parametrize(("key", "shown"), [(RIGHT_KEY, "***"), ("EMPTY", "EMPTY")])
def test_no_record_holds_a_secret_that_the_server_gives_away(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, key: str, shown: str
) -> None:
    monkeypatch.setenv("API_KEY", key)
    # Of the last one, only the key's beginning would be within what an error tells.
    replies = ask(subject(faulty.at, api_key="env:API_KEY"), "<<key:0>>", "<<refused_key:0>>", "<<refused_key:140>>")
    assert replies[0].text == f"Bearer {shown}"
    assert replies[1].error == f"HTTP 400: Bearer {shown}"
    assert key[:4] not in str(replies[2].error) or key == "EMPTY"


def test_a_server_that_repeats_the_key_doesn_t_spread_it(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "sk-wrong-987")
    error = mistake(faulty.at, model="locked", api_key="env:API_KEY")
    assert str(error) == (
        f"{FIELD}.api_key: {faulty.at} refuses the key in env:API_KEY: HTTP 401: Incorrect API key provided: ***"
    )


# --- spending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_nothing_is_sent_that_could_go_over_the_limit(faulty: Faulty, concurrency: int) -> None:
    # The check costs $1, a row $4 and at most $10: five rows are within $30, at a sixth it could become 21 + 10.
    asked = subject(faulty.at, price_in=0.0, price_out=DOLLAR, spending_limit=30.0, concurrency=concurrency)
    replies = ask(asked, *[str(i) for i in range(12)], tokens=10)
    answered = [reply for reply in replies if reply.error is None]
    assert len(answered) == 5
    assert {reply.cost for reply in answered} == {4.0}
    assert {reply.error for reply in replies} == {None, "spending limit of $30 reached"}
    assert asked.endpoint.spent == 21.0 == faulty.seen()["num_tokens"]
    assert len(faulty.seen()["bodies"]) == 6


def test_unseen_work_counts_at_its_worst(faulty: Faulty) -> None:
    asked = subject(faulty.at, price_in=0.0, price_out=DOLLAR, spending_limit=35.0, timeout_s=SHORT_S, concurrency=1)
    replies = ask(asked, "<<slow:4>>", "<<http:500>>", "<<drop>>", "<<unmetered>>", "Hi", tokens=10)
    assert [reply.error for reply in replies] == [
        "no answer within 1 s",
        "HTTP 500: told to say 500",
        "the connection broke: Server disconnected without sending a response.",
        None,
        "spending limit of $35 reached",
    ]
    assert asked.endpoint.spent == 1 + 10 + 0 + 10 + 10


def test_retries_are_paid_too(faulty: Faulty) -> None:
    asked = subject(faulty.at, price_in=0.0, price_out=DOLLAR, spending_limit=25.0, retries=5)
    assert ask(asked, "<<half>>", tokens=10)[0].error == "spending limit of $25 reached (3 tries)"


def test_a_limit_under_the_first_token_is_told(faulty: Faulty) -> None:
    error = mistake(faulty.at, price_in=0.0, price_out=DOLLAR, spending_limit=0.5)
    assert str(error) == f"{FIELD}.spending_limit: not even a request for one token is within $0.5"
    assert faulty.seen()["bodies"] == []


# --- stopping -----------------------------------------------------------------------------------


def test_a_signal_ends_the_asking(faulty: Faulty) -> None:
    def stop(signum: int, frame: Any) -> None:
        raise Stopped(signum)

    asked = subject(faulty.at)
    asked.endpoint.check()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Stopped):
            ask(asked, *[f"{i} <<slow:4>>" for i in range(8)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert faulty.seen()["num_answered"] == 1
    assert "requests" not in {thread.name for thread in threading.enumerate()}


# --- how sure it is -----------------------------------------------------------------------------


def test_likelihoods_are_not_to_be_had(faulty: Faulty) -> None:
    message = "an endpoint gives no likelihoods; set evaluate.calibration.confidence=verbalised"
    with pytest.raises(UserError, match=message):
        subject(faulty.at).likelihoods(user("Hi"), ["yes"], nothing)


def test_certainty_is_asked_in_a_further_turn(faulty: Faulty) -> None:
    asked = subject(faulty.at)
    questions = [Question([{"role": "user", "content": "Where?"}])] * 2
    assert verbalised(asked, questions, [Reply("Here."), Reply(None, error="HTTP 500")], nothing) == [None, None]
    (body,) = faulty.seen()["bodies"][1:]
    assert body["messages"] == [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": HOW_SURE},
    ]


class Sure:
    """A subject that states what it is told, or nothing."""

    name, about = "sure", {"model": "none"}

    def __init__(self, *texts: str | None) -> None:
        self.texts = texts

    def answer(self, questions: Any, max_new_tokens: int, done: Any) -> list[Reply]:
        return [Reply(text, error=None if text is not None else "gone") for text in self.texts]

    sample: Any = None
    answer_alone: Any = None
    likelihoods: Any = None


def test_certainties_keep_their_rows() -> None:
    replies = [Reply("a"), Reply(None, error="x"), Reply("b"), Reply("c"), Reply("d")]
    found = verbalised(Sure("80", None, "very", "7"), user(*"abcde"), replies, nothing)
    assert found == [0.8, None, None, None, 0.07]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 85\n", 0.85),
        ("100%", 1.0),
        ("0.", 0.0),
        ("99.5 %", 0.995),
        ("101", None),
        ("I am 85 sure", None),
        ("85/100", None),
        ("-5", None),
        ("", None),
        ("1e2", None),
    ],
)
def test_a_number_alone_is_read(text: str, value: float | None) -> None:
    assert stated(text) == value
