"""Who does something to the registry, and when."""

import getpass
import os
import socket
from datetime import UTC, datetime


def signed(run_id: str, reason: str | None) -> dict[str, str]:
    """`by` (user@machine, and whom the server knows), `at` (UTC, ISO 8601), `run` and `reason` of a move."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"by": who(), "at": at, "run": run_id, "reason": reason or ""}


def who() -> str:
    """The user of this machine, and the name under which the tracking server lets it in, where there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"  # a container may run under a number that has no name
    known = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return f"{user}@{socket.gethostname()}" + (f" (MLflow: {known})" if known else "")
