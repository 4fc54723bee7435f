"""What an evaluation's run says it judged, for versions whose own files don't say it."""

import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.release.evidence import Evidence, Verdicts, answered_verdicts, read
from pipelines.release.seal import DIGEST_TAG
from pipelines.tracking.patience import FORBIDDEN
from pipelines.tracking.registry import Version

NAMED = {"adapter": "eval.adapter_digest", "revision": "eval.revision"}
ANSWERS = "evaluation/answers.parquet"


def evidence(version: Version, folder: Path) -> Evidence:
    """What is known of a version whose files lie in `folder`, their seal checked."""
    tags = _tags(version.tags.get("scores.run", ""))
    judged = {name: tags[tag] for name, tag in NAMED.items() if tag in tags}
    found = read(version.uri, version.tags.get(DIGEST_TAG, ""), folder, version.tags, judged)
    return found if found.verdicts is not None else replace(found, verdicts=verdicts(version))


def verdicts(version: Version) -> Verdicts | None:
    """Of the run that scored a version, in the store that is open; None where it doesn't hold them."""
    run_id = version.tags.get("scores.run", "")
    subject = _tags(run_id).get("eval.subject")
    if subject is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{ANSWERS}", dst_path=temporary)
        except (MlflowException, OSError):
            return None  # the ruling says that there are none
        return answered_verdicts(Path(path), subject)


def _tags(run_id: str) -> dict[str, str]:
    """Of a run; empty where this store has none of that id, or doesn't show it: the version may come from another."""
    try:
        return dict(MlflowClient().get_run(run_id).data.tags) if run_id else {}
    except MlflowException as error:
        # With authentication a server says of a run that isn't there that it isn't allowed.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or error.get_http_status_code() == FORBIDDEN:
            return {}
        raise
