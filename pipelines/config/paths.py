"""Where the project is, and what a relative path in the configuration means."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf"


def resolve(path: str) -> Path:
    """An absolute path as it is; a relative one in the working folder if it is there, else in the project's."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    here = Path.cwd() / given
    return here if here.exists() else PROJECT / given
