"""What the planted code does inside the stages: a third party that shows secrets, and errs with them.

The benchmark puts it on PYTHONPATH as `sitecustomize`, so that each process has it. TUNESMITH_PLANTED names the file of
secrets, TUNESMITH_ACT what happens: `show`, or `raise` in the third training step, of rank TUNESMITH_RANK.
"""

import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATCHED = "transformers.trainer"


def secrets() -> dict[str, str]:
    """Kind -> secret, as they were planted."""
    found: dict[str, str] = json.loads(Path(os.environ["TUNESMITH_PLANTED"]).read_text(encoding="utf-8"))
    return found


def show() -> None:
    """Prints, logs and warns with each secret, as libraries do."""
    log = logging.getLogger("third.party")
    log.addHandler(logging.StreamHandler())
    for kind, secret in secrets().items():
        print(f"printed {kind}: {secret}")
        print(f"told {kind}: {{'value': '{secret}'}}", file=sys.stderr, flush=True)
        log.error("logged %s: %s", kind, secret)
        warnings.warn_explicit(f"warned {kind}: {secret}", RuntimeWarning, "third.py", 1, registry={})


class ThirdPartyError(Exception):
    """An error with every secret in its message."""

    def __init__(self) -> None:
        super().__init__("; ".join(f"raised {kind}: {secret}" for kind, secret in secrets().items()))


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        made: types.ModuleType | None = self.inner.create_module(spec)
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        self.inner.exec_module(module)
        step = module.Trainer.training_step

        def planted(trainer: Any, *given: Any, **named: Any) -> Any:
            if trainer.state.global_step == 2 and os.environ.get("RANK", "0") == os.environ.get("TUNESMITH_RANK", "0"):
                show()
                if os.environ["TUNESMITH_ACT"] == "raise":
                    raise ThirdPartyError
            return step(trainer, *given, **named)

        module.Trainer.training_step = planted


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != PATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if "TUNESMITH_ACT" in os.environ:
    sys.meta_path.insert(0, _Finder())
