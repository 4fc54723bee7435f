"""Trainings in several ranks for the price of one import: all that is heavy is imported, then ranks are forked.

`python -m tests.compute.forked CASES.json` runs the cases one after the other and writes OUTCOMES beside the file. It
is a process of its own because nothing may have touched a tensor before a fork.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config.paths import PROJECT

OUTCOMES = "outcomes.json"
SECONDS = 120


@dataclass(frozen=True)
class Case:
    """A stage's training by its composed overrides.

    `kill_at` is the step after which every rank kills itself. `drop` undoes what keeps accelerate from dropping the
    strategy without a word, so that the case has to fail.
    """

    name: str
    stage: str
    overrides: list[str]
    work: str
    num_ranks: int = 2
    kill_at: int | None = None
    adapter: str | None = None
    drop: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How the ranks ended, what they wrote, and how long it took."""

    codes: list[int]
    said: str
    seconds: float


def run(cases: Sequence[Case], folder: Path) -> dict[str, Outcome]:
    """The outcome of each case by name; raises where one ended otherwise than it should."""
    place = folder / "cases.json"
    place.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-m", "tests.compute.forked", str(place)]
    subprocess.run(words, cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=580)
    held = json.loads((folder / OUTCOMES).read_text(encoding="utf-8"))
    outcomes = {name: Outcome(**given) for name, given in held.items()}
    for case in cases:
        expected = -signal.SIGKILL if case.kill_at else 0
        if not case.drop:
            found = outcomes[case.name]
            assert found.codes == [expected] * case.num_ranks, f"{case.name}: {found.codes}\n{found.said}"
    return outcomes


def main() -> None:
    import deepspeed  # noqa: F401
    import trl  # noqa: F401

    from pipelines.__main__ import quieten
    from pipelines.config.compose import compose
    from pipelines.policy import imitation, on_policy, reinforce  # noqa: F401

    quieten()
    place = Path(sys.argv[1])
    outcomes = {}
    for held in json.loads(place.read_text(encoding="utf-8")):
        case = Case(**held)
        outcomes[case.name] = asdict(_outcome(case, compose(case.overrides).config))
        print(f"{case.name}: {outcomes[case.name]['codes']} {outcomes[case.name]['seconds']:.1f} s", file=sys.stderr)
    (place.parent / OUTCOMES).write_text(json.dumps(outcomes), encoding="utf-8")


def _outcome(case: Case, config: Any) -> Outcome:
    begun, port, work = time.monotonic(), free_port(), Path(case.work)
    work.mkdir(parents=True, exist_ok=True)
    logs = [work.with_name(f"{work.name}.{case.name}.{rank}.log") for rank in range(case.num_ranks)]
    pids = {_forked(case, config, rank, port, logs[rank]): rank for rank in range(case.num_ranks)}
    codes = _waited(dict(pids), begun)
    said = "\n".join(f"--- rank {n}\n{log.read_text(errors='replace')[-3000:]}" for n, log in enumerate(logs))
    return Outcome([codes[rank] for rank in range(case.num_ranks)], said, time.monotonic() - begun)


def _waited(alive: dict[int, int], begun: float) -> dict[int, int]:
    """The exit codes by rank; where one fails, or time is over, the others are killed."""
    codes: dict[int, int] = {}
    failed_at: float | None = None
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in alive:
            rank = alive.pop(pid)
            codes[rank] = os.waitstatus_to_exitcode(status)
            if codes[rank]:
                failed_at = failed_at or time.monotonic()
            continue
        # Others may be about to end by themselves, for the same reason.
        late = failed_at is not None and time.monotonic() - failed_at > 3
        if late or time.monotonic() - begun > SECONDS:
            for left in alive:
                os.kill(left, signal.SIGKILL)
        time.sleep(0.02)
    return codes


def _forked(case: Case, config: Any, rank: int, port: int, log: Path) -> int:
    if pid := os.fork():
        return pid
    code = 1
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            if case.num_ranks > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(case.num_ranks),
                    "LOCAL_WORLD_SIZE": str(case.num_ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            _train(case, config)
            code = 0
        except BaseException:  # noqa: BLE001 - the rank's end, told in its log
            traceback.print_exc()
        finally:
            with contextlib.suppress(ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _train(case: Case, config: Any) -> None:
    from pipelines import product as products
    from pipelines.compute import gloo_fsdp, ranks
    from pipelines.compute.strategy import begin
    from pipelines.policy import fit
    from pipelines.policy.base import pin
    from pipelines.stages import STAGES, named_input
    from pipelines.tracking.run import Silent

    if case.kill_at is not None:
        _kill_after(fit, case.kill_at)
    if case.drop == "fsdp2":
        gloo_fsdp.allow = lambda: None
    begin(config.compute)
    if case.drop == "zero2":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    config = config.model_copy(update={"model": pin(config.model)})
    stage, work = STAGES[case.stage], ranks.own(Path(case.work))
    work.mkdir(parents=True, exist_ok=True)
    inputs = {kind: named_input(stage, config, kind) for kind in stage.wanted(config)}
    given = {kind: found for kind, found in inputs.items() if found is not None}
    if case.adapter is not None:
        given["adapter"] = products.load(Path(case.adapter))
    stage.module.run(config, given, work, Silent(""))
    ranks.barrier()


def _kill_after(fit: Any, step: int) -> None:
    from pipelines.compute import ranks

    class Killed(fit.TrainerCallback):
        """Behind the save of that step, as a machine that goes would."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                ranks.barrier()
                os.kill(os.getpid(), signal.SIGKILL)

    known = fit._Watch

    def with_killer(*given: Any) -> Any:
        watch = known(*given)
        watch.on_step_begin = Killed().on_step_begin
        return watch

    fit._Watch = with_killer


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
