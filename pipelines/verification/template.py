"""The process that workers are forked from: it has the verifier's modules, and no thread, model or GPU.

It talks over the socket that it is started with. It answers each request for a worker with its
process id, and ends, with all workers and whatever they started, as soon as the other side is gone.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import Any

from pipelines import masking
from pipelines.config.schema import Sandbox, Task
from pipelines.tasks import preloaded
from pipelines.verification.frames import receive, send
from pipelines.verification.processes import children, kill_tree
from pipelines.verification.worker import refusal, serve

LOOKED_S = 1.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(descriptor: int) -> None:
    parent = os.getppid()
    masking.install()  # a user's verifier may print what it likes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a worker leaves behind becomes a child of this process
    about = receive(control)
    if about is None:
        return
    task, sandbox = Task.model_validate_json(about["task"]), Sandbox.model_validate_json(about["sandbox"])
    try:
        _preload(preloaded(task, about["name"]))
    except Exception as error:  # noqa: BLE001  # told by the process that asked
        send(control, refusal(error))
        return
    send(control, {"ready": True})
    workers: set[int] = set()
    gc.collect()
    gc.freeze()  # pages that the collector never touches stay shared with the workers
    try:
        while _asked(control, parent) and (request := receive(control)) is not None:
            if "reap" in request:
                workers.discard(request["reap"])
                send(control, {"status": os.waitpid(request["reap"], 0)[1]})
                _reap_orphans(workers)
                continue
            _, (end, *_), _, _ = socket.recv_fds(control, 1, 1)
            workers.add(_fork(control, socket.socket(fileno=end), (task, sandbox, about["name"], about["memory_mb"])))
    except ConnectionError:
        pass  # the other side is gone
    finally:
        kill_tree(os.getpid(), itself=False)


def _asked(control: socket.socket, parent: int) -> bool:
    """Waits for a request; false where the process that started this one is gone.

    A copy of the socket may live on in that process's other children, so its closing alone isn't waited for.
    """
    while os.getppid() == parent:
        if select.select([control], [], [], LOOKED_S)[0]:
            return True
    return False


def _fork(control: socket.socket, connection: socket.socket, job: tuple[Task, Sandbox, str | None, int]) -> int:
    template = os.getpid()
    pid = os.fork()
    if pid:
        connection.close()
        send(control, {"pid": pid})
        return pid
    code = 1
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == template:
            control.close()
            serve(connection, *job)
            code = 0
    except BaseException:  # noqa: BLE001  # the worker must never go on as a second template
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _reap_orphans(workers: set[int]) -> None:
    """Takes what a killed worker left behind, and has ended since, off the process table.

    A worker stays on it until it is asked for: its number must not become another process's.
    """
    for pid in children(os.getpid()):
        if pid not in workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _preload(modules: list[str]) -> None:
    for name in modules:
        try:
            module: Any = importlib.import_module(name)
        except ModuleNotFoundError:
            return  # the worker says which, and what to do about it
        if hasattr(module, "warm") and name.startswith("pipelines."):
            module.warm()


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
