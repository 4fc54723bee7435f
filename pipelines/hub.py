"""What a name on the Hugging Face Hub stands for right now: its commit."""

from typing import Literal

from pipelines.errors import Unreachable, UserError

KINDS = {"model": "model", "dataset": "data set"}


def commit_of(kind: Literal["model", "dataset"], name: str, revision: str | None, field: str, pinned_by: str) -> str:
    """The commit of a branch, a tag or, without a revision, of the newest files.

    `field` and `pinned_by` name the settings that a message points to. Raises UserError where there is no such
    repository or revision, Unreachable where the Hub doesn't answer.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        info = ask(name, revision=revision, timeout=20)
    except RepositoryNotFoundError:
        raise UserError(f"{field}: the Hub has no {KINDS[kind]} {name!r}, or it needs a login") from None
    except RevisionNotFoundError:
        raise UserError(f"{pinned_by}: {name} has no revision {revision!r}") from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise Unreachable(f"{field}: can't ask the Hub for {name}: {first_line(error)}") from None
    if not info.sha:
        raise UserError(f"{pinned_by}: the Hub names no commit for {name}@{revision}")
    return str(info.sha)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
