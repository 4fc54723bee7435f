"""The process that compares results with what is expected: one for all programs, and none of them ever runs there."""

import json
import os
import resource

from pipelines.sandbox import checker, frames
from pipelines.sandbox.landlock import Ruleset
from pipelines.sandbox.seccomp import Filter, architecture, program
from pipelines.sandbox.zygote import descriptors

_INTERPRETER_MB = 64


def main() -> None:
    """Serves on standard input and output. It confines itself like a program: its data come from one."""
    limits = json.loads(frames.receive(0))
    frames.send(1, b"ready")
    requests, replies = descriptors()
    if limits["isolated"]:
        Ruleset(limits["readable"], ("/dev/null",)).restrict()
        filter_ = Filter(program(architecture(), forks=False))
        filter_.promise()
        filter_.install()
    space = (limits["memory_mb"] + _INTERPRETER_MB) << 20
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    while True:
        try:
            asked = frames.receive(requests)
        except frames.Ended:
            os._exit(0)
        frames.send(replies, checker.answer(asked))
