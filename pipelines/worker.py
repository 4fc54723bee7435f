"""One process of a training: `python -m pipelines.worker RESOLVED`, as the parent starts it.

By hand, below torchrun or `accelerate launch`: `-m pipelines.worker STAGE CONFIG`, where CONFIG is what
`python -m pipelines STAGE ... --cfg job` printed. Knows nothing of Hydra.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import masking, secrets
from pipelines.__main__ import quieten
from pipelines.compute import ranks
from pipelines.compute.launch import MADE, TRAINING
from pipelines.config.schema import Config
from pipelines.config.validate import read
from pipelines.errors import Stopped, UserError
from pipelines.product import Product

USAGE = "usage: python -m pipelines.worker RESOLVED, or STAGE CONFIG below torchrun"


def main() -> None:
    """Ends the process with the exit code."""
    masking.install()
    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.exit`: a rank whose peers are gone would wait for them in the destructors of their group.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Carries out its part; returns the exit code, the error itself in the launcher's file."""
    from pipelines import stopping

    quieten()
    stopping.install()
    spawned = len(arguments) == 1
    try:
        if spawned:
            _resolved(Path(arguments[0]))
        else:
            _by_hand(*_stage_and_config(arguments))
    except UserError as error:
        _record(error)
        if not spawned:
            print(f"tunesmith: {secrets.masked(str(error))}", file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        return stop.exit_code
    except Exception as error:  # noqa: BLE001 - recorded with its traceback, and the process ends by it
        _record(error)
        if not spawned:
            sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _record(error: BaseException) -> None:
    """The error file that the launcher reads, with a finer clock than its own whole seconds."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not place:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    at = time.time()
    get_error_handler().record_exception(error)
    path = Path(place)
    told = secrets.masked_values(json.loads(path.read_text(encoding="utf-8"))) | {"at": at}
    path.write_text(json.dumps(told), encoding="utf-8")


def _resolved(path: Path) -> None:
    """The parent's file: it holds the run and waits for the product."""
    from pipelines.compute.strategy import begin
    from pipelines.stages import STAGES

    given = json.loads(path.read_text(encoding="utf-8"))
    secrets.watch(given["config"])
    config = Config.model_validate(given["config"])
    inputs = {name: Product(**{**held, "folder": Path(held["folder"])}) for name, held in given["inputs"].items()}
    work = Path(given["work"])
    begin(config.compute)
    made = _carry_out(STAGES[given["stage"]], config, inputs, work, given["run_id"])
    if ranks.is_main():
        (path.parent / MADE).write_text(json.dumps(made), encoding="utf-8")


def _carry_out(stage: Any, config: Config, inputs: dict[str, Product], work: Path, run_id: str) -> dict[str, Any]:
    from pipelines.tracking.run import Silent, attached
    from pipelines.tracking.store import open_store

    own = ranks.own(work)
    if not ranks.is_main():
        shutil.rmtree(own, ignore_errors=True)  # of an attempt that was killed
    own.mkdir(parents=True, exist_ok=True)
    if ranks.is_main():
        open_store(config.tracking)
    made: dict[str, Any]
    if ranks.is_main():
        with attached(run_id, work) as run:
            made = stage.module.run(config, inputs, own, run)
    else:
        made = stage.module.run(config, inputs, own, Silent(run_id))
    ranks.barrier()
    if not ranks.is_main():
        shutil.rmtree(own, ignore_errors=True)  # below torchrun rank 0 clears the whole folder
    return made


def _stage_and_config(arguments: Sequence[str]) -> tuple[str, Config]:
    if len(arguments) != 2 or arguments[0] not in TRAINING:
        raise UserError(f"{USAGE}; STAGE is one of {', '.join(TRAINING)}")
    return arguments[0], read(Path(arguments[1]))


def _by_hand(name: str, config: Config) -> None:
    """Without a parent: rank 0 opens the run and publishes, the others help it."""
    from pipelines import product as products
    from pipelines.compute.strategy import begin
    from pipelines.perform import run_stage
    from pipelines.policy.base import pin
    from pipelines.stages import STAGES, fingerprint_of, gather, place
    from pipelines.tracking.store import open_store

    begin(config.compute)
    config = config.model_copy(update={"model": pin(config.model)})
    stage = STAGES[name]
    inputs = gather(stage, config)
    folder = place(stage, config, fingerprint_of(stage, config, inputs))
    # Decided before rank 0 can have published anything.
    there = ranks.from_main((folder / products.MANIFEST).exists)
    if config.reuse and there:
        raise UserError(f"{folder}: made already; reuse=false makes it again")
    if ranks.is_main():
        open_store(config.tracking)
        run_stage(stage, config, inputs)
    else:
        _carry_out(stage, config, inputs, products.work_of(folder), "")


if __name__ == "__main__":
    main()
