"""The subjects of an evaluation: found and named by content first, then loaded one after the other."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import schema
from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.attaching import attached
from pipelines.policy.base import elsewhere, load_base, load_tokenizer, load_tokenizer_from, pin, template_switches
from pipelines.policy.served import Served, load_served
from pipelines.product import Product, load
from pipelines.subjects.endpoint import Endpoint, EndpointSubject
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Subject
from pipelines.tracking import registry
from pipelines.tracking.registry import Version


@dataclass(frozen=True)
class Planned:
    """A subject that is there: `about` names it by content; `adapter` is its adapter's folder, where it has one."""

    name: str
    settings: schema.Subject
    about: dict[str, str]
    adapter: Path | None = None
    version: Version | None = None
    endpoint: Endpoint | None = None


def plan(config: Config, adapter: Product | None) -> tuple[list[Planned], list[str]]:
    """The subjects of `evaluate.subjects`, and the names of optional ones that aren't there.

    `adapter` is what a subject of kind adapter without `at` means. Nothing is loaded. Raises UserError naming the
    subject that isn't there.
    """
    planned, absent = [], []
    for name, settings in config.evaluate.subjects.items():
        field = f"evaluate.subjects.{name}.at"
        if settings.optional and not _is_there(settings, field, adapter):
            absent.append(name)
        else:
            planned.append(_PLANS[str(settings.kind)](config, name, settings, adapter))
    for role in ("candidate", "reference"):
        wanted = getattr(config.evaluate, role)
        unknown = adapter is None and config.evaluate.subjects[wanted].kind == "parent"
        if wanted in absent and not unknown:
            raise UserError(f"evaluate.{role}: {wanted} is not there; name another subject")
    return planned, absent


def _is_there(settings: schema.Subject, field: str, adapter: Product | None) -> bool:
    if settings.kind == "parent":
        return adapter is not None and bool(adapter.about.get("parent"))
    if settings.kind == "version":
        return registry.is_there(str(settings.at), field)
    return settings.at is None or settings.kind == "endpoint" or resolve(settings.at).exists()


def _base(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    model = config.model  # pinned when the run began
    about = {"model": model.id, "revision": str(model.revision), "license": model.license.id}
    return Planned(name, settings, about)


def _adapter(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    found = load(resolve(settings.at)) if settings.at else adapter
    if found is None:
        return Planned(name, settings, {})  # what the stage is given stands for itself
    if found.kind != "adapter":
        field = f"evaluate.subjects.{name}.at"
        raise UserError(f"{field}: expected a folder of kind adapter, {settings.at} is of kind {found.kind}")
    base, model = found.about["base"], config.model
    if base["revision"] != model.revision:
        raise UserError(
            f"evaluate.subjects.{name}: the adapter in {found.folder} was trained on {base['id']} "
            f"({base['revision']}); model is {model.id} ({model.revision})"
        )
    about = {
        "model": base["id"],
        "revision": base["revision"],
        "license": base["license"],
        "adapter": found.about["adapter"],
        "adapter digest": found.digest,
    }
    return Planned(name, settings, about, found.folder)


def _parent(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    """The adapter that this configuration's was trained on from. Raises UserError where it is gone or has changed."""
    if adapter is None:
        return Planned(name, settings, {})
    named = adapter.about.get("parent")
    field = f"evaluate.subjects.{name}"
    if not named:
        raise UserError(f"{field}: the adapter in {adapter.folder} was trained from the base, it has no parent")
    found = load(resolve(named["folder"]))
    if found.digest != named["digest"]:
        raise UserError(f"{field}: {found.folder} has changed since {adapter.folder} was trained on from it")
    return _adapter(config, name, settings, found)


def _version(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    found = registry.find(str(settings.at), f"evaluate.subjects.{name}.at")
    tags = {
        "model": "base.id",
        "revision": "base.revision",
        "license": "base.license",
        "adapter digest": "adapter.digest",
    }
    about = {"version": found.uri} | {told: found.tags[tag] for told, tag in tags.items() if tag in found.tags}
    return Planned(name, settings, about, version=found)


def _model(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    model = pin(config.model.model_copy(update={"id": str(settings.at), "revision": None}))
    about = {"model": model.id, "revision": str(model.revision), "license": config.model.license.id}
    return Planned(name, settings, about)


def _endpoint(config: Config, name: str, settings: schema.Subject, adapter: Product | None) -> Planned:
    endpoint = Endpoint(settings, f"evaluate.subjects.{name}")
    return Planned(name, settings, endpoint.about, endpoint=endpoint)


_PLANS: dict[str, Callable[[Config, str, schema.Subject, Product | None], Planned]] = {
    "base": _base,
    "adapter": _adapter,
    "parent": _parent,
    "version": _version,
    "model": _model,
    "endpoint": _endpoint,
}


def opened(config: Config, planned: Sequence[Planned]) -> Iterator[Subject]:
    """Each subject, ready to be asked; one is let go before the next is loaded.

    The base and this configuration's adapters share one copy of the base.
    """
    shared = [one for one in planned if one.settings.kind in ("base", "adapter", "parent")]
    if shared:
        yield from _sharing_base(config, shared)
    for one in planned:
        if one not in shared:
            yield _alone(config, one)
            gc.collect()


def _sharing_base(config: Config, planned: Sequence[Planned]) -> Iterator[Subject]:
    base = load_base(config.model, config.adapter, config.compute).eval()
    plain = load_tokenizer(config.model)
    bare = [one for one in planned if one.settings.kind == "base"]
    # Before an adapter is attached the base is the checkpoint itself.
    yield from (_local(config, one, base, plain) for one in bare)
    for one in planned:
        if one.adapter is not None:
            with attached(base, one.adapter) as model:
                yield _local(config, one, model, load_tokenizer_from(one.adapter, config.model))


def _local(config: Config, planned: Planned, model: Any, tokenizer: Any) -> LocalSubject:
    return LocalSubject(
        name=planned.name,
        about=planned.about,
        model=model,
        tokenizer=tokenizer,
        template=template_switches(config.model),
        batch_size=config.compute.eval_batch_size,
        seed=config.seed,
    )


def _alone(config: Config, planned: Planned) -> Subject:
    if planned.endpoint is not None:
        return EndpointSubject(planned.name, planned.endpoint, config.seed)
    if planned.version is not None:
        return _served(config, planned, planned.version)
    return _export(config, planned)


def _served(config: Config, planned: Planned, version: Version) -> LocalSubject:
    adapter, settings = registry.contents(version)
    served: Served = load_served(settings, adapter)
    return LocalSubject(
        name=planned.name,
        about=planned.about,
        model=served.model,
        tokenizer=served.tokenizer,
        template=served.template,
        batch_size=served.compute.eval_batch_size,
        seed=config.seed,
    )


def _export(config: Config, planned: Planned) -> LocalSubject:
    """Weights that hold their adapter, quantised as they are published."""
    model = elsewhere(config.model, str(planned.settings.at), None)
    plain = config.adapter.model_copy(update={"quantization": None})
    loaded = load_base(model, plain, config.compute).eval()
    return _local(config, planned, loaded, load_tokenizer(model))


def check_endpoints(planned: Sequence[Planned]) -> None:
    """Asks each endpoint for a token, before models are loaded. Raises UserError or Unreachable naming the subject."""
    for one in planned:
        if one.endpoint is not None:
            one.endpoint.check()


def adapters_of(planned: Sequence[Planned]) -> dict[str, Path]:
    """The adapter's folder of each subject that has one, a registered version's downloaded."""
    folders = {one.name: one.adapter for one in planned if one.adapter}
    return folders | {one.name: registry.contents(one.version)[0] for one in planned if one.version}


def identity(config: Config) -> Mapping[str, Mapping[str, str]]:
    """What the subjects are, by content, for the fingerprint of an evaluation."""
    planned, _ = plan(config, None)
    return {one.name: one.about for one in planned}
