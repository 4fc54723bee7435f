"""Attacking programs (`tests/sandbox/attacks.py`) in the sandbox, with fresh namespaces and with shared ones."""

import tempfile
from pathlib import Path

from pipelines.sandbox.sandbox import Sandbox
from tests.sandbox.attacks import ATTACKS, RIGHT, TESTS
from tests.sandbox.settings import sandbox_settings
from tests.sandbox.test_attacks import QUICK, Host


def measure() -> dict[str, float]:
    """How many attacks there are and how many were rewarded; a harmed host, or a sandbox that broke, raises."""
    rewarded = 0
    for fresh in (True, False):
        with Sandbox(sandbox_settings(fresh_namespaces=fresh, **QUICK)) as sandbox:
            for attack in ATTACKS.values():
                rewarded += _passed(sandbox, attack)
            if not sandbox.run(RIGHT, "", TESTS).passed:
                raise RuntimeError("after the attacks the sandbox refuses a right program")
    return {"attacks": 2.0 * len(ATTACKS), "attacks_rewarded": float(rewarded)}


def _passed(sandbox: Sandbox, attack: str) -> bool:
    with tempfile.TemporaryDirectory() as folder, Host(Path(folder)) as host:
        passed = sandbox.run(host.code(attack), "", TESTS).passed
        host.check()
    return passed
