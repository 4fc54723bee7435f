"""Secrets are taken out of texts, streams and structures; digests and ordinary words stay."""

import hashlib
import io
import random
import string
from pathlib import Path

import pytest

from benchmarks.registry_secrets_planted import PATTERNED, core, planted
from pipelines.config.compose import as_yaml, compose, load_resolved
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.masking import Masking
from pipelines.secret_kinds import MASK
from pipelines.secrets import found, masked, masked_values

SECRETS = planted(random.Random(7))


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The value of a variable whose name says that it is secret."""
    value = "Tr0ub4dor&3 = {x}"
    monkeypatch.setenv("BILLING_PASSWORD", value)
    return value


@pytest.mark.parametrize("kind", PATTERNED)
def test_a_token_is_masked_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    for text in (secret, f"before {secret} after", f"'{secret}'", f'{{"a": "{secret}"}}', f"a={secret}\nb"):
        plain = masked(text)
        assert not [part for part in core(secret) if part in plain]
        assert MASK in plain
        assert masked(plain) == plain


def test_the_value_of_a_secret_variable_is_masked_in_every_spelling(variable: str) -> None:
    for text in (variable, f"https://h/?q={'Tr0ub4dor%263%20%3D%20%7Bx%7D'}", repr({"a": variable})):
        assert "Tr0ub4dor" not in masked(f"x {text} y")


def test_user_and_password_are_masked_as_a_header_joins_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "trainer")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
    assert masked("sent dHJhaW5lcjpjb3JyZWN0IGhvcnNlIGJhdHRlcnk= to the server") == f"sent {MASK} to the server"


def test_the_password_of_an_address_in_any_variable_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "postgresql://me:p%40ss-w0rd@db/x")
    assert masked("login with p@ss-w0rd or p%40ss-w0rd to db") == f"login with {MASK} or {MASK} to db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOME_TOKEN", "true"),
        ("SOME_KEY", "created_at"),
        ("MAX_TOKENS", "4096"),
        ("API_KEY", "EMPTY"),
        ("SSL_KEY", "/etc/ssl/private/key1.pem"),
        ("PWD", "/home/me/project9"),
        ("PLAIN", "Secr3t-looking"),
    ],
)
def test_words_numbers_switches_and_paths_are_no_secrets(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"the value is {value} here") == f"the value is {value} here"


def test_a_short_value_counts_as_a_word_of_its_own_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "abc123")
    digest = "00abc123ff" + "0" * 30
    assert masked(f"abc123 {digest}") == f"{MASK} {digest}"


def test_digests_and_identifiers_stay() -> None:
    chance = random.Random(3)
    for length in (7, 12, 32, 36, 40, 64, 128):
        for _ in range(200):
            digest = "".join(chance.choice("0123456789abcdef") for _ in range(length))
            for text in (digest, f"sha256:{digest}", f"run {digest} key digest {digest}", f"git.commit: {digest}"):
                assert masked(text) == text
    for number in range(500):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        text = f"models:/m-{name[:32]} adapters/{name[:12]}.partial requirements.lock=={name} seed {number}"
        assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "pad_token='<pad>' eos_token=<|im_end|> bos_token: <s>1 max_new_tokens=512",
        "api_key: env:OPENAI_API_KEY, api_key=null, hub_token: None",
        "key=value overrides; a list is written key=[a,b]; 'key=\"two words\"'",
        "http://127.0.0.1:5000/path?mail=me@example.com&page=2",
        "models:/support_routing@staging and models:/x/3",
        "Basic understanding of Bearer certificates: the secret: practise daily",
        "ask-0123456789-or-disk-0123456789abcdefghijkl and task-1234567890123456789012",
        "tokens/s 1234.5, seconds_per_token: 0.01s, loss=1.25e-3",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert masked(text) == text


def test_the_projects_own_pages_and_defaults_stay() -> None:
    for path in [*PROJECT.glob("docs/*.md"), PROJECT / "README.md", *PROJECT.glob("conf/**/*.yaml")]:
        if path.name not in ("security.md", "server.md"):  # they show what is masked
            text = path.read_text(encoding="utf-8")
            assert masked(text) == text, path


def test_nested_values_are_masked_with_their_keys(variable: str) -> None:
    given = {"a": [1, {"hub_token": "abc123"}], variable: 0.5, "b": (f"x {variable}", None), "end_tokens": "abc123"}
    assert masked_values(given) == {
        "a": [1, {"hub_token": MASK}],
        MASK: 0.5,
        "b": (f"x {MASK}", None),
        "end_tokens": "abc123",
    }


def test_long_random_words_are_not_slow() -> None:
    """Patterns with nested repetition would need minutes for these."""
    chance = random.Random(1)
    signs = string.ascii_letters + string.digits + "-_=:/@.?&'\" "
    text = "".join(chance.choice(signs) for _ in range(200_000))
    assert masked(text + "=" * 20_000 + "a" * 20_000)


class Recorded(io.StringIO):
    """A stream that can be looked at after it was closed, and says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_stream_masks_a_secret_that_is_written_in_pieces(variable: str) -> None:
    under = Recorded()
    stream = Masking(under)
    for piece in ("password", "=", "hunter22", "\nand ", variable[:5], variable[5:], "\n"):
        stream.write(piece)
    assert under.getvalue() == f"password={MASK}\nand {MASK}\n"
    assert stream.isatty()


def test_a_line_without_an_end_is_shown_when_it_is_flushed() -> None:
    under = Recorded()
    stream = Masking(under)
    stream.write("50 %")
    assert under.getvalue() == ""
    stream.flush()
    stream.write("\rtoken=abc123def")
    stream.flush()
    assert under.getvalue() == f"50 %\rtoken={MASK}"


def test_a_private_key_is_masked_over_its_lines() -> None:
    under = Recorded()
    stream = Masking(under)
    stream.write("it is -----BEGIN RSA PRIVATE KEY-----\n")
    stream.writelines(["MIIEow\n", "IBAAKC\n", "-----END RSA PRIVATE KEY-----; token=abc123def\n", "after\n"])
    assert under.getvalue() == f"it is {MASK}; token={MASK}\nafter\n"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "tracking.uri=http://me:hunter2@mlflow",
            "tracking.uri: it holds a password, which would be kept .* set MLFLOW_",
        ),
        (
            f"task.instruction='use {SECRETS['openai']}'",
            "task.instruction: it holds an OpenAI key, .* in the environment",
        ),
        (
            f"+engine.env.HF_TOKEN={SECRETS['hugging_face']}",
            "it holds a Hugging Face token.*name it among engine.secrets",
        ),
        (f"'paths.rows=\"{SECRETS['github']}\"'", "paths.rows: it holds a GitHub token"),
    ],
)
def test_a_secret_in_a_configuration_is_refused_without_being_shown(override: str, told: str) -> None:
    engine = ["engine=kubernetes"] if "engine" in override else []
    with pytest.raises(UserError, match=told) as error:
        compose([*engine, override.strip("'") if override.startswith("'") else override])
    assert "hunter2" not in str(error.value)
    assert not any(secret in str(error.value) for secret in SECRETS.values())


def test_a_secret_variable_in_a_configuration_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_PASSWORD", "Tr0ub4dor")
    with pytest.raises(UserError, match=r"task\.instruction: it holds the value of a secret environment variable"):
        compose(["task.instruction='say Tr0ub4dor'"])


def test_what_a_record_lacks_is_not_taken_for_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose(["task.instruction='say Tr0ub4dor'"])
    monkeypatch.setenv("BILLING_PASSWORD", "Tr0ub4dor")  # only now is it known for a secret
    assert "Tr0ub4dor" not in as_yaml(composed.config)
    (tmp_path / "config.yaml").write_text(as_yaml(composed.config))
    with pytest.raises(UserError, match=r"task\.instruction: a secret was taken out here when this was recorded"):
        load_resolved(str(tmp_path / "config.yaml"))


def test_kinds_are_named() -> None:
    assert found(f"x {SECRETS['anthropic']}") == "an Anthropic key"
    assert found("password=hunter22") == "a password"
    assert found("nothing") is None


def test_a_variable_that_the_configuration_names_is_secret_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "Quiet42words")
    assert masked("it is Quiet42words") == "it is Quiet42words"
    compose(["teacher.api_key=env:MINE"])
    assert masked("it is Quiet42words") == f"it is {MASK}"
