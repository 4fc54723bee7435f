"""Where the project is, and what a relative path in the configuration means."""

from pathlib import Path

from pipelines.errors import DataError

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf"


def resolve(path: str) -> Path:
    """An absolute path as it is; a relative one in the working folder if it is there, else in the project's."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    here = Path.cwd() / given
    return here if here.exists() else PROJECT / given


def read_text(path: str, field: str) -> str:
    """The text of a file that a field of the configuration names. Raises DataError where it can't be read."""
    try:
        return resolve(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{field}: {path}: no such file (looked for {error.filename})") from error
    except OSError as error:
        raise DataError(f"{field}: {path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{field}: {path}: not UTF-8: {error.reason} at byte {error.start}; expected UTF-8") from error
