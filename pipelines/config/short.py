"""Short names: in the stages of a release a bare key of the stage's own block means that block's."""

from typing import get_args

from pipelines.config.schema import Config
from pipelines.config.serving import Kind

RELEASE = ("promote", "rollback", "serve", "deploy", "export", "reproduce", "lineage")


def spelled_out(stage: str, text: str) -> str:
    """`to=staging` of promote as `promote.to=staging`.

    `model=` names a version where its value is one, and a profile of conf/model/ elsewhere; rollback and lineage take
    the name of a registered model too. deploy's `engine=` is what answers in the pods where its value is such a
    program.
    """
    name, separator, value = text.partition("=")
    block, dot, _ = name.partition(".")
    if stage not in RELEASE or not separator or block not in _fields(stage):
        return text
    if dot:  # such as calibration.rows; model.id is the model's
        return text if block in Config.model_fields else f"{stage}.{text}"
    if (stage, name) == ("deploy", "engine") and value not in get_args(Kind):
        return text  # whose machines the pods run on, a file of conf/engine/
    if name == "model" and stage not in ("rollback", "lineage") and not value.strip("'\"").startswith("models:"):
        return text
    return f"{stage}.{text}"


def _fields(stage: str) -> set[str]:
    kind = Config.model_fields[stage].annotation
    return set(getattr(kind, "model_fields", {}))
