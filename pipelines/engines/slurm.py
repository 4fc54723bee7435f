"""A node of a job that submitit started, on Slurm or in processes of this machine: who it is, for the launcher.

Slurm itself is driven by Hydra's submitit launcher: `-m hydra/launcher=submitit_slurm`.
"""

import os

from pipelines.config.schema import Config

STARTED = "SUBMITIT_EXECUTOR"


def take_place(config: Config) -> None:
    """Leaves the node's number and the first node's address in the environment, where several nodes work together."""
    if config.compute.num_nodes == 1 or STARTED not in os.environ:
        return
    import submitit

    job = submitit.JobEnvironment()
    os.environ |= {
        "NODE_RANK": str(job.node if job.num_nodes > 1 else job.global_rank),
        "MASTER_ADDR": job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(config.engine.port),
    }


def is_first() -> bool:
    """Whether this process is the one that keeps the job's run."""
    return os.environ.get("NODE_RANK", "0") == "0"
