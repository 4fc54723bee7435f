"""Standard output and error without secrets, whoever writes to them from Python: we, third parties, the interpreter."""

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from pipelines.secret_kinds import MASK
from pipelines.secrets import masked

_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_ENDS = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY-----")


class Masking:
    """A text stream that passes on what is written, line by line, without secrets; all else is the stream's own.

    What is written in pieces is joined to its line before it is looked at. A line without an end is passed on when the
    stream is flushed, as progress bars need it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""
        self._in_key = False  # between the lines that begin and end a private key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        whole, newline, rest = (self._held + text).rpartition("\n")
        self._held = rest
        if newline:
            self._stream.write("".join(self._line(line) for line in (whole + newline).splitlines(keepends=True)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        held, self._held = self._held, ""
        if held:
            self._stream.write(self._line(held))
        self._stream.flush()

    def _line(self, line: str) -> str:
        if self._in_key:
            ended = _ENDS.search(line)
            self._in_key = ended is None
            return self._line(line[ended.end() :]) if ended else ""
        if (begun := _BEGINS.search(line)) and not _ENDS.search(line, begun.end()):
            self._in_key = True
            return masked(line[: begun.start()]) + MASK
        return masked(line)


def install() -> None:
    """Puts the filter before standard output and error, once.

    Comes before what keeps a reference to either, such as handlers of logs. What compiled code and child processes
    write to the descriptors themselves doesn't pass it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Masking):
            setattr(sys, name, Masking(stream))
