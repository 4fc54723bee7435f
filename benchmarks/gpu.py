"""Training on a GPU: random models of real shapes, each beside what `trl sft` does by default.

usage: python -m benchmarks.gpu [CELL ...] [--sides tunesmith,trl] [--budget 540] [--out FILE] [--table | --predict]

What a call measures is appended to FILE, so several calls make one table, and what is there of this card isn't
measured again. A call ends within its budget: a cell for which too little time is left waits for the next. `--predict`
writes down what the memory plan says of each cell, without a GPU and before there is a figure.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_cells import CELLS, Call, Cell
from benchmarks.gpu_predict import predicted, write
from benchmarks.gpu_table import read, table

OUT = Path(__file__).parent / "gpu.jsonl"
LEAST_S = 45.0  # left of the budget, under which no cell is begun
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
Record = dict[str, Any]


def main(words: list[str]) -> None:
    """One cell is measured in this process, several each in one of its own: what one breaks leaves the others alone."""
    asked = _arguments(words)
    names = asked.cells or list(CELLS)
    if unknown := [name for name in names if name not in CELLS]:
        sys.exit(f"no cell {unknown[0]!r}; the cells are {', '.join(CELLS)}")
    if asked.predict:
        write([CELLS[name] for name in names])
    elif not asked.table:
        end = time.monotonic() + asked.budget
        if len(names) == 1:
            _one(CELLS[names[0]], asked, end)
        else:
            for name in names:
                _apart(name, asked, words, end)
    if asked.table or (len(names) > 1 and not asked.predict):
        print(table(read(asked.out)))


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", help=f"of {', '.join(CELLS)}; all without one")
    parser.add_argument("--sides", default="", help="of tunesmith, trl, trl_bf16, peft; all without one")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, behind three that warm up")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds that the call may take")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON-lines file that is added to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the code")
    parser.add_argument("--attention", default="", help="of tunesmith's side; flash_attention_2 where it is installed")
    parser.add_argument("--table", action="store_true", help="measures nothing; what the file holds, as Markdown")
    parser.add_argument("--predict", action="store_true", help="measures nothing; writes the plan's peaks down")
    return parser.parse_args(words)


def _apart(name: str, asked: argparse.Namespace, words: list[str], end: float) -> None:
    left = end - time.monotonic()
    if left < LEAST_S:
        print(f"{name}: {left:.0f} s are left; ask for it in another call", flush=True)
        return
    flags = [word for word in words if word not in CELLS]
    command = [sys.executable, "-m", "benchmarks.gpu", name, *flags, "--budget", f"{left - 5:.0f}"]
    try:
        code = subprocess.run(command, timeout=left).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: not done when the call's time was over", flush=True)
        return
    if code:
        print(f"{name}: ended with exit code {code}", flush=True)


def _one(cell: Cell, asked: argparse.Namespace, end: float) -> None:
    begun = time.perf_counter()
    import torch

    from benchmarks.gpu_clock import forget, matrix_rate

    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is there; --device cpu --tiny tries the code without one")
    flash = asked.device == "cuda" and find_spec("flash_attn") is not None
    attention = asked.attention or ("flash_attention_2" if flash else "sdpa")
    call = Call(asked.device, asked.tiny, asked.steps, attention, end)
    sides = [side for side in cell.sides if side in asked.sides.split(",")] if asked.sides else list(cell.sides)
    about = {"cell": cell.name, "card": _card(call), "tiny": call.tiny, "versions": _versions()}
    done = {(r["cell"], r["side"], r["card"], r["tiny"]) for r in read(asked.out) if "error" not in r}
    # Whoever comes first on a cold card has the other place in the next cell.
    for side in sides if list(CELLS).index(cell.name) % 2 == 0 else reversed(sides):
        if (cell.name, side, about["card"], call.tiny) in done:
            continue
        if time.monotonic() > end - LEAST_S / 3:
            print(f"{cell.name}: {side} waits for another call", flush=True)
            continue
        forget(call.device)
        rate = matrix_rate(call)
        record = about | {"side": side, "matrix_tflops": rate} | measure(cell, side, call)
        record["process_s"] = round(time.perf_counter() - begun, 1)
        _append(asked.out, record)
        print(json.dumps(record), flush=True)


def measure(cell: Cell, side: str, call: Call) -> Record:
    """The figures of one side, with the least recomputation that fits; or `error`, where none does."""
    from benchmarks.gpu_settings import checkpointings

    record: Record = {}
    tried = checkpointings(side, cell)
    for checkpointing in tried:
        peak = None if call.tiny else predicted(cell, side, checkpointing)
        if peak is not None and peak > _memory_gib(call) and checkpointing != tried[-1]:
            continue  # a model of 70 billion parameters takes long to make for nothing
        record = _attempt(cell, side, call, checkpointing)
        if record.get("error") != "out of memory":
            break
    return record


def _attempt(cell: Cell, side: str, call: Call, checkpointing: str) -> Record:
    import torch

    from benchmarks.gpu_clock import forget, peaks

    length, batch = call.size(cell)
    record: Record = {
        "length": length,
        "batch": batch,
        "checkpointing": checkpointing,
        "attention": call.attention if side == "tunesmith" else "sdpa",
        "held_before_gib": forget(call.device),
    }
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
        try:
            record |= _method(cell)(cell, side, call, checkpointing, Path(work))
        except torch.cuda.OutOfMemoryError:
            record["error"] = "out of memory"
        except TimeoutError as error:
            record["error"] = str(error)
    return record | peaks(call.device)


def _method(cell: Cell) -> Callable[[Cell, str, Call, str, Path], Record]:
    if cell.kind == "sft":
        from benchmarks.gpu_train import train

        return train
    if cell.kind == "grpo":
        from benchmarks.gpu_grpo import reinforce

        return reinforce
    from benchmarks.gpu_adapter import handle

    return handle


def _memory_gib(call: Call) -> float:
    import torch

    return torch.cuda.mem_get_info()[1] / 2**30 if call.device == "cuda" else float("inf")


def _append(out: Path, record: Record) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _card(call: Call) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if call.device == "cuda" else platform.machine()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES if find_spec(name)}


if __name__ == "__main__":
    main(sys.argv[1:])
