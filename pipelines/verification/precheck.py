"""What a task's verifiers need of this machine, checked in a moment and before anything is read or trained."""

from pipelines.config.schema import Config
from pipelines.environments import check as check_environment
from pipelines.tasks import UNJUDGED, runs_programs


def check(config: Config, audited: bool) -> None:
    """Raises UserError for a verifier that there isn't, or one that runs programs where nothing isolates them.

    An environment is asked itself.
    """
    if config.task.environment is not None:
        check_environment(config.task.environment)
    names = [config.task.audit] if audited and config.task.audit else []
    asked = [None, *names] if config.task.verify != UNJUDGED or audited else names
    if any(runs_programs(config.task, name) for name in asked):
        from pipelines.sandbox.sandbox import check_isolation

        check_isolation(config.verifier.sandbox)
