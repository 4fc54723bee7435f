"""Calls of the registry made again where another writer was in the way."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.tracking.sending import may_pass
from pipelines.tracking.who import who

TRIES = 8
FIRST_WAIT_S = 0.1
FORBIDDEN = 403
# Two writers that make the same row: the second finds it there when it tries again.
COLLIDED = ("UNIQUE constraint", "IntegrityError", "duplicate key", "Duplicate entry")

T = TypeVar("T")


def again(call: Callable[[], T]) -> T:
    """What the call returns, tried up to `TRIES` times with growing, uneven waits.

    For calls that may be made twice. Raises what the last one raises, UserError where the server doesn't allow it.
    """
    for number in range(TRIES):
        try:
            return call()
        except MlflowException as error:
            if error.get_http_status_code() == FORBIDDEN:
                raise UserError(f"tracking: the MLflow server doesn't let {who()} do this: {error.message}") from None
            if number + 1 == TRIES or not (may_pass(error) or any(word in str(error) for word in COLLIDED)):
                raise
        time.sleep(FIRST_WAIT_S * 2 ** min(number, 4) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")
