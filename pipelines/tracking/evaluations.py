"""Past evaluations of one held-out set, found by its digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.errors import UserError

HELDOUT = "eval.heldout"
TABLE = "evaluation/answers.parquet"
SHOWN = 12


@dataclass(frozen=True)
class Evaluation:
    """A run of evaluate that ended well: its id, when it began (UTC), the set's digest and its table's file."""

    run_id: str
    begun: str
    heldout: str
    table: Path


def past_evaluations(heldout: str, run_ids: Sequence[str] | None) -> list[Evaluation]:
    """The runs of evaluate on the held-out set whose digest begins so, oldest first.

    `run_ids` takes these alone. Raises UserError where there is none, a run is none of them, or two sets' digests
    begin so.
    """
    runs = _given(run_ids, heldout) if run_ids is not None else _found(heldout)
    if not runs:
        raise UserError(f"compare.rows: no run of evaluate on held-out rows {heldout[:SHOWN]}; run evaluate first")
    digests = sorted({run.data.tags[HELDOUT] for run in runs})
    if len(digests) > 1:
        shown = ", ".join(digest[:SHOWN] for digest in digests)
        raise UserError(f"compare.rows: {heldout} is the beginning of {len(digests)} digests: {shown}")
    return [_evaluation(run) for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]


def _found(heldout: str) -> list[Run]:
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'FINISHED' and tags.stage = 'evaluate' and tags.`{HELDOUT}` LIKE '{heldout}%'"
    runs, token = [], None
    while True:
        page = client.search_runs(experiments, query, max_results=1000, page_token=token)
        runs += [run for run in page if "reused_from" not in run.data.tags]
        token = page.token
        if not token:
            return runs


def _given(run_ids: Sequence[str], heldout: str) -> list[Run]:
    runs = []
    for run_id in run_ids:
        try:
            run = MlflowClient().get_run(run_id)
        except MlflowException as error:
            raise UserError(f"compare.runs: {run_id}: {error.message}") from None
        judged = run.data.tags.get(HELDOUT)
        if judged is None or run.data.tags.get("stage") != "evaluate" or run.info.status != "FINISHED":
            raise UserError(f"compare.runs: {run_id}: expected a run of evaluate that ended well")
        if not judged.startswith(heldout):
            raise UserError(f"compare.runs: {run_id}: judged on rows {judged[:SHOWN]}, expected {heldout[:SHOWN]}")
        runs.append(run)
    return runs


def _evaluation(run: Run) -> Evaluation:
    begun = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    table = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=TABLE))
    return Evaluation(run.info.run_id, begun, run.data.tags[HELDOUT], table)
