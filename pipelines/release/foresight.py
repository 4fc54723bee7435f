"""What a gate would refuse whatever is trained, told before it is."""

from pipelines.config.schema import Config
from pipelines.errors import Refused


def check(config: Config) -> None:
    """Raises Refused naming the licence of base or data that the flow's gate doesn't allow."""
    base = {"model.license.id": config.model.license.id}
    data = {f"task.sources.{name}.license": source.license for name, source in config.task.sources.items()}
    lists = (("base", config.gate.licenses.base, base), ("data", config.gate.licenses.data, data))
    for of, allowed, found in lists:
        for field, name in found.items():
            if allowed is not None and name not in allowed:
                raise Refused(
                    f"{field}: gate {config.gate.name} would refuse what is trained (license_{of}): expected one of "
                    f"{', '.join(allowed) or 'none'}, got {name}; see gate.licenses.{of}"
                )
