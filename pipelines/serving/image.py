"""The image: the project with its locked environment, the base where it is a folder, and `serve` as its program."""

import shutil
from pathlib import Path

from pipelines.config.paths import PROJECT
from pipelines.config.serving import Kind

BASE = "base"  # where a base that lies in a folder is in the image
SOURCES = ("pipelines", "conf", "pyproject.toml", "requirements.lock", "python_env.yaml", "README.md", "LICENSE")
UNSEEN = ("__pycache__", "*.pyc")


def write_context(work: Path, base: Path | None, engine: Kind) -> None:
    """What the Dockerfile copies, below `context/`."""
    context = work / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns(*UNSEEN))
        else:
            shutil.copyfile(source, context / name)
    if engine == "vllm":
        shutil.copytree(PROJECT / "requirements", context / "requirements", ignore=shutil.ignore_patterns(*UNSEEN))
    if base is not None:
        shutil.copytree(base, context / BASE, ignore=shutil.ignore_patterns(*UNSEEN))


def dockerfile(engine: Kind, has_base: bool, port: int) -> str:
    """Each COPY is of the context, each RUN works without a cache; the container's user is no root."""
    lines = [
        "FROM python:3.11-slim",
        "RUN useradd --create-home --uid 1000 tunesmith",
        "WORKDIR /tunesmith",
        "ENV PATH=/tunesmith/.venv/bin:$PATH HOME=/home/tunesmith PYTHONUNBUFFERED=1",
        "COPY context/requirements.lock ./",
        "RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir -r requirements.lock",
        *(_vllm() if engine == "vllm" else ()),
        *(
            f"COPY context/{name}{'/' if '.' not in name and name != 'LICENSE' else ''} "
            f"./{name if '.' not in name and name != 'LICENSE' else ''}"
            for name in SOURCES
            if name != "requirements.lock"
        ),
        "RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable .",
        *((f"COPY context/{BASE}/ ./{BASE}", f"ENV TUNESMITH_BASE_MODEL=/tunesmith/{BASE}") if has_base else ()),
        "USER 1000",
        f"EXPOSE {port}",
        'ENTRYPOINT ["python", "-m", "pipelines", "serve"]',
    ]
    return "\n".join(lines) + "\n"


def _vllm() -> tuple[str, ...]:
    install = ".venv-vllm/bin/pip install --no-cache-dir -r requirements/vllm.txt"
    return ("COPY context/requirements/ ./requirements", f"RUN python -m venv .venv-vllm && {install}")
