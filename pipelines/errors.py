"""Failures that a user can cause, and the exit codes they end with."""


class UserError(Exception):
    """A mistake in a configuration, a file or a command: shown without a traceback."""

    exit_code = 2


class DataError(UserError):
    """Source files that can't become rows; the message lists file, line and reason of each."""


class Refused(UserError):
    """A gate said no: a recorded result, not a failure of the program."""

    exit_code = 3


class Unreachable(UserError):
    """A service that the run needs doesn't answer."""

    exit_code = 4


class Stopped(BaseException):
    """SIGTERM or Ctrl-C arrived; like KeyboardInterrupt it passes `except Exception`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.exit_code = 128 + signum
