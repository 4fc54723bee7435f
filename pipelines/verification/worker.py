"""One worker: answers come in, verdicts go out, until the other side closes or ends it."""

import contextlib
import resource
import signal
import socket
import traceback
from pathlib import Path
from typing import Any

from pipelines.config.schema import Sandbox, Task
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.secrets import masked
from pipelines.tasks import resolve_verify
from pipelines.tasks.verdict import Verdict, VerifierFailed, Verify
from pipelines.verification.frames import receive, send

SHOWN = 300


def serve(connection: socket.socket, task: Task, sandbox: Sandbox, name: str | None, memory_mb: int) -> None:
    """Makes the verify, says so, and asks it about each answer that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        verify = resolve_verify(task, sandbox, name)
    except Exception as error:  # noqa: BLE001  # whatever a user's module raises is told by the process that asked
        send(connection, refusal(error))
        return
    _limit_memory(memory_mb)
    send(connection, {"ready": True})
    with contextlib.suppress(ConnectionError):  # the other side is gone, and nobody waits for an answer
        while (job := receive(connection)) is not None:
            send(connection, _answer(verify, job["completion"], Row.from_dict(job["row"])))


def refusal(error: BaseException) -> dict[str, Any]:
    """Why there is no verify: a user's mistake as it reads, anything else with its traceback's end."""
    if isinstance(error, UserError):
        return {"mistake": masked(str(error))}
    return {"broken": masked("".join(traceback.format_exception(error)[-6:]))}


def _answer(verify: Verify, completion: str, row: Row) -> dict[str, Any]:
    try:
        verdict = verify(completion, row)
    except UserError as error:  # a row or a configuration that can't be judged: the same for every answer
        return {"mistake": masked(str(error))}
    except MemoryError:
        return {"failure": "memory"}
    except VerifierFailed as error:
        return {"failure": f"failed: {masked(str(error))[:SHOWN]}"}
    except Exception as error:  # noqa: BLE001  # an error of the verifier says nothing of the answer: a failure, counted
        last = masked(traceback.format_exception_only(error)[-1].strip())
        return {"failure": f"error: {last[:SHOWN]}"}
    if not _is_verdict(verdict):
        return {"failure": f"error: returned {masked(repr(verdict))[:SHOWN]}, expected a Verdict"}
    return {"correct": verdict.correct, "parsed": verdict.parsed}


def _is_verdict(found: object) -> bool:
    return (
        isinstance(found, Verdict)
        and isinstance(found.correct, bool)
        and (found.parsed is None or isinstance(found.parsed, str))
    )


def _limit_memory(memory_mb: int) -> None:
    """The address space may grow by this much over what is mapped already."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
