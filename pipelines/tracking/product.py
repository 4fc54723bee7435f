"""The product that a run left, found by the run's id."""

from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.errors import UserError


def product_folder(run_id: str, field: str) -> Path:
    """The folder of the product that a run made; `field` names the setting that asks for it.

    Raises UserError where the store has no such run, or the run made nothing.
    """
    try:
        tags = MlflowClient().get_run(run_id).data.tags
    except MlflowException as error:
        raise UserError(f"{field}: run {run_id!r}: {error.message}") from None
    if "product.folder" not in tags:
        made = f"it reused that of run {tags['reused_from']}" if "reused_from" in tags else "it made no product"
        raise UserError(f"{field}: run {run_id}: expected a run that made a product; {made}")
    return Path(tags["product.folder"])
