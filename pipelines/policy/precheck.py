"""What a method that learns from a teacher as it goes can't do, told before anything is trained."""

from pipelines.config.schema import Config
from pipelines.config.teaching import FROM_GENERATED, SERVED
from pipelines.errors import UserError


def check(config: Config) -> None:
    """Raises UserError for a task, a teacher or a temperature that `distill.method` can't learn with."""
    method, task = config.distill.method, config.task
    if method in FROM_GENERATED:
        return
    if task.environment is not None:
        raise UserError(
            f"distill.method: {method} has no episodes in an environment, and task {task.name} has {task.environment}; "
            "let the teacher play them with generate and use distillation=sequence"
        )
    if config.teacher.kind != "endpoint":
        return
    if method not in SERVED:
        raise UserError(
            f"teacher.kind: distill.method {method} needs a teacher that is loaded here, not an endpoint; name another "
            f"kind, or use distillation={' or '.join(SERVED)}"
        )
    temperature = config.distill.trainer.get("temperature", 1.0)
    if temperature != 1.0:
        raise UserError(
            f"distill.trainer.temperature: an endpoint tells its distributions at temperature 1, got {temperature}; "
            "set it to 1.0"
        )
