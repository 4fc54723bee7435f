import socket
import subprocess
import sys
from collections import Counter
from typing import Any, get_args

import pytest

from pipelines.config.schema import PiiKind
from pipelines.dataset.redact import RECOGNIZERS, Redactor
from pipelines.errors import UserError

CLEAN = [
    "I am still waiting on my card?",
    "  The exchange rate was 1.0843 on 2024-05-06 at 10:30 — why?\r\n\t",
    "My order number is 536904399, invoice 12-3456, 25 % off.",
    "2 + 2 = 4; see section 3.2.1, page 1200 of 1999",
    "The rate is really bad.This can't be it",
    "Delayed for half an hour.Please fix it! Is a transfer...is this possible, a card...how? It came.So what",
    "28980 elephants, 4*2880 = <<4*2880=11520>>11520",
    "Ünïcödé 👍🏽 \u200b stays",
    "",
]


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(list(RECOGNIZERS), ["US", "GB", "DE"])


def test_every_kind_of_the_configuration_has_a_recogniser() -> None:
    assert set(RECOGNIZERS) == set(get_args(PiiKind))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+bank@mail.example.co.uk, please.", "Write to <EMAIL_ADDRESS>, please."),
        ("(o'brien@example.org)", "(<EMAIL_ADDRESS>)"),
        ("call +1 (212) 555-0147 now", "call <PHONE_NUMBER> now"),
        ("call 212-555-0147 or 020 7946 0958", "call <PHONE_NUMBER> or <PHONE_NUMBER>"),
        ("Tel.: +49 30 901820.", "Tel.: <PHONE_NUMBER>."),
        ("card 4111 1111 1111 1111 expired", "card <CREDIT_CARD> expired"),
        ("amex 378282246310005, mc 5555-5555-5555-4444", "amex <CREDIT_CARD>, mc <CREDIT_CARD>"),
        ("to DE89 3704 0044 0532 0130 00 today", "to <IBAN_CODE> today"),
        ("GB82WEST12345698765432", "<IBAN_CODE>"),
        ("from 192.168.0.1 and 2001:db8::8a2e:370:7334", "from <IP_ADDRESS> and <IP_ADDRESS>"),
        ("my ssn is 536-90-4399", "my ssn is <US_SSN>"),
        ("see https://example.com/account?id=7 first", "see <URL> first"),
        ("or www.example.org.", "or <URL>."),
        ("see Example.com/help please", "see <URL> please"),
        ("at https://example.com/a/../Start.Html now", "at <URL> now"),
        ("send to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "send to <CRYPTO>"),
        ("device 00:1A:2B:3C:4D:5E", "device <MAC_ADDRESS>"),
        ("“jo@example.com” 👍 +44 20 7946 0958…", "“<EMAIL_ADDRESS>” 👍 <PHONE_NUMBER>…"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(redactor: Redactor, text: str, expected: str) -> None:
    redacted, counts = redactor.redact(text)
    assert redacted == expected
    assert counts == Counter(kind for kind in RECOGNIZERS for _ in range(expected.count(f"<{kind}>")))
    assert redactor.redact(redacted) == (redacted, Counter())


@pytest.mark.parametrize("text", CLEAN)
def test_a_text_without_personal_data_stays_byte_for_byte(redactor: Redactor, text: str) -> None:
    assert redactor.redact(text) == (text, Counter())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("CREDIT_CARD", "card 4111 1111 1111 1112"),
        ("IBAN_CODE", "DE88 3704 0044 0532 0130 00"),
        ("IP_ADDRESS", "999.1.1.1 and ::"),
        ("US_SSN", "000-12-3456 and 536904399"),
        ("EMAIL_ADDRESS", "user@localhost and name@host.notasuffix"),
        ("PHONE_NUMBER", "000-000-0000 and 12345"),
        ("CRYPTO", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb"),
        ("MAC_ADDRESS", "FF:FF:FF:FF:FF:FF and 00:1A:2B:3C:4D"),
    ],
)
def test_what_fails_its_check_is_no_personal_data(kind: str, text: str) -> None:
    assert Redactor([kind], ["US"]).redact(text) == (text, Counter())


def test_a_long_text_without_spaces_takes_no_minutes() -> None:
    email = Redactor(["EMAIL_ADDRESS"], ["US"])
    for part in ("a.", "1-", "a@", "!"):
        assert email.redact(part * 50_000 + " jo@example.com")[0].endswith(" <EMAIL_ADDRESS>")


def test_where_kinds_overlap_the_checked_one_wins(redactor: Redactor) -> None:
    assert redactor.redact("jo@example.com")[1] == Counter({"EMAIL_ADDRESS": 1})
    assert redactor.redact("GB82 WEST 1234 5698 7654 32")[1] == Counter({"IBAN_CODE": 1})


def test_only_the_asked_kinds_and_regions_are_replaced() -> None:
    text = "jo@example.com, 4111 1111 1111 1111, 020 7946 0958"
    assert Redactor(["CREDIT_CARD"], ["US"]).redact(text)[0] == "jo@example.com, <CREDIT_CARD>, 020 7946 0958"
    assert Redactor(["PHONE_NUMBER"], ["GB"]).redact(text)[1] == Counter({"PHONE_NUMBER": 1})
    assert Redactor(["PHONE_NUMBER"], ["US"]).redact(text)[1] == Counter()


def test_no_connection_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    fresh = Redactor(["EMAIL_ADDRESS", "URL"], ["US"])
    assert fresh.redact("jo@example.com or www.example.org")[0] == "<EMAIL_ADDRESS> or <URL>"


def test_without_a_kind_nothing_is_imported() -> None:
    program = (
        "import sys; from pipelines.dataset.redact import Redactor\n"
        "print(Redactor([], ['US']).redact('jo@example.com'), 'presidio_analyzer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('jo@example.com', Counter()) False"


def test_a_missing_package_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['presidio_analyzer'] = None\n"
        "from pipelines.dataset.redact import Redactor; Redactor(['URL'], ['US'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = f"{UserError.__module__}.UserError: prepare.redact: needs the package presidio-analyzer; "
    assert done.stderr.splitlines()[-1] == expected + "pip install 'tunesmith[pii]'"
