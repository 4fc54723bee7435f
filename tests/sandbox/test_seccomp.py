"""The filter in two parts against the whole, each run by a small interpreter of their instructions."""

import struct
from itertools import product

import pytest

from pipelines.sandbox.seccomp import MACHINES, in_two, program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARGUMENTS = (0, 1, 6, 8, 11, 17, 22, 38, 0x541B, 0x10000000, 0x7E020011, 1 << 33)
PAIRS = [(value, 0) for value in ARGUMENTS] + [(0, value) for value in ARGUMENTS[1:]]


def answer(filter_: bytes, audit: int, number: int, arguments: tuple[int, int]) -> int:
    """What the kernel does with a call, as classic BPF has it (linux/bpf_common.h)."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("<HBBI", filter_))
    at = loaded = 0
    while True:
        operation, yes, no, operand = steps[at]
        at += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            loaded = struct.unpack_from("<I", data, operand)[0]
            continue
        tests = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}
        at += yes if tests[operation] else no


@pytest.mark.parametrize(("name", "forks"), product(MACHINES, (False, True)))
def test_two_parts_are_as_strict_as_the_whole(name: str, forks: bool) -> None:
    whole, (first, second) = program(name, forks), in_two(name, forks)
    audit = MACHINES[name].audit
    for number in (*range(600), 0x40000000, 0x40000038, 0xFFFFFFFF):
        for arguments in PAIRS:
            answers = {answer(part, audit, number, arguments) for part in (first, second)}
            assert min(answers) == answer(whole, audit, number, arguments), (number, arguments)  # errors are smaller
    assert answer(first, 0x40000003, 1, (0, 0)) == KILL


@pytest.mark.parametrize(("name", "numbers"), [("x86_64", (62, 434, 126, 302)), ("aarch64", (129, 434, 91, 261))])
def test_only_the_second_part_ends_the_zygotes_own_calls(name: str, numbers: tuple[int, ...]) -> None:
    """kill, pidfd_open, capset, another process's limits; a clone with namespaces, and one more filter."""
    first, second = in_two(name, forks=True)
    here = MACHINES[name]
    calls = [(number, (7, 7)) for number in numbers] + [(here.clone, (0x7E020011, 0)), (here.prctl, (22, 2))]
    for number, arguments in calls:
        assert answer(first, here.audit, number, arguments) == ALLOW
        assert answer(second, here.audit, number, arguments) == EPERM
    assert answer(first, here.audit, here.prctl, (38, 1)) == EPERM
    assert answer(first, here.audit, here.clone3, (0, 0)) == ENOSYS
    assert answer(second, here.audit, here.clone, (17, 0)) == ALLOW
    assert answer(in_two(name, forks=False)[1], here.audit, here.clone, (17, 0)) == EPERM
