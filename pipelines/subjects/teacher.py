"""The teacher: named by content first, then loaded, or asked where it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.block import License
from pipelines.config.paths import resolve
from pipelines.config.schema import Config, Model
from pipelines.errors import Refused, UserError
from pipelines.policy.base import (
    elsewhere,
    load_adapter,
    load_base,
    load_tokenizer,
    load_tokenizer_from,
    template_switches,
)
from pipelines.policy.served import load_served
from pipelines.policy.vocabulary import probe, rendering_difference
from pipelines.product import Product, load
from pipelines.subjects import distributions
from pipelines.subjects.distributions import Distributions
from pipelines.subjects.endpoint import Endpoint, EndpointSubject
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Subject
from pipelines.tracking import registry
from pipelines.tracking.registry import Version

FIELD = "teacher"


@dataclass(frozen=True)
class Teacher:
    """A teacher that is there: `about` names it by content, `license` is that of what it writes."""

    about: dict[str, str]
    license: dict[str, str | None]
    model: Model | None = None  # the base that is loaded, where this configuration says how
    adapter: Path | None = None
    version: Version | None = None
    endpoint: Endpoint | None = None

    def record(self) -> dict[str, Any]:
        """What a product says of its teacher."""
        return {**self.about, "license": self.license}


@dataclass(frozen=True)
class Loaded:
    """A teacher on this machine: its model in evaluation mode, its tokenizer and its template's switches."""

    model: Any
    tokenizer: Any
    template: Mapping[str, Any]


def find(config: Config) -> Teacher:
    """The teacher that the configuration names; nothing is loaded.

    Raises UserError where there is none, Refused where the gate doesn't allow its licence: what would be learnt from it
    could never be promoted.
    """
    found = _named(config)
    allowed = config.gate.licenses.teachers
    if allowed is not None and found.license["id"] not in allowed:
        raise Refused(
            f"teacher.license: gate {config.gate.name} allows teachers under {', '.join(allowed) or 'no licence'}, and "
            f"this one's is {found.license['id']}; see gate.licenses.teachers"
        )
    return found


def _named(config: Config) -> Teacher:
    settings = config.teacher
    if settings.kind is None:
        raise UserError("teacher.kind: nobody to learn from; set teacher.kind and teacher.at")
    if settings.kind == "endpoint":
        endpoint = Endpoint(settings, FIELD, patience_s=settings.patience_s)
        return Teacher(endpoint.about | {"kind": "endpoint"}, _license(config, None), endpoint=endpoint)
    if settings.kind == "version":
        return _version(config)
    if settings.kind == "adapter":
        return _adapter(config, load(resolve(str(settings.at))))
    model = config.model if settings.kind == "base" else _elsewhere(config.model, str(settings.at), None)
    about = {"kind": settings.kind, "model": model.id, "digest": str(model.revision)}
    license = config.model.license if settings.kind == "base" else None
    return Teacher(about, _license(config, license), model)


def _version(config: Config) -> Teacher:
    found = registry.find(str(config.teacher.at), f"{FIELD}.at")
    named = {"model": "base.id", "digest": "model.digest", "adapter": "adapter.digest"}
    told = {name: found.tags[tag] for name, tag in named.items() if tag in found.tags}
    base = License(id=found.tags["base.license"], conditions=None, url=None) if "base.license" in found.tags else None
    return Teacher({"kind": "version", "version": found.uri, **told}, _license(config, base), version=found)


def _adapter(config: Config, found: Product) -> Teacher:
    if found.kind != "adapter":
        raise UserError(f"{FIELD}.at: expected a folder of kind adapter, {found.folder} is of kind {found.kind}")
    base = found.about["base"]
    model = _elsewhere(config.model, base["id"], base["revision"])
    if model.revision != base["revision"]:
        raise UserError(
            f"{FIELD}.at: {found.folder} was trained on {base['id']} ({base['revision']}), which has changed"
        )
    about = {"kind": "adapter", "model": base["id"], "revision": base["revision"], "digest": found.digest}
    license = License(id=base["license"], conditions=None, url=None)
    return Teacher(about, _license(config, license), model, found.folder)


def _elsewhere(profile: Model, id: str, revision: str | None) -> Model:
    """The teacher's base; what is wrong with it is told of `teacher.at`."""
    try:
        return elsewhere(profile, id, revision)
    except UserError as error:
        raise type(error)(f"{FIELD}.at: {str(error).removeprefix('model.id: ')}") from None


def _license(config: Config, base: License | None) -> dict[str, str | None]:
    known = config.teacher.license or base
    if known is None:
        raise UserError(
            f"{FIELD}.license: nothing says under which licence the teacher's answers may be used; set "
            "teacher.license={id: ..., conditions: null, url: null}"
        )
    return known.model_dump()


def loaded(config: Config, teacher: Teacher) -> Loaded:
    """The teacher on this machine. Raises UserError where it is an endpoint, or where its files have changed."""
    if teacher.endpoint is not None:
        raise UserError(f"{FIELD}.kind: expected a teacher that is loaded here, got an endpoint")
    four_bits = config.teacher.quantization
    if teacher.version is not None:
        folder, settings = registry.contents(teacher.version)
        if four_bits is not None:
            adapter = {**settings["adapter"], "quantization": four_bits.model_dump()}
            settings = {**settings, "adapter": adapter}
        served = load_served({**settings, "compute": config.compute.model_dump()}, folder)
        return Loaded(served.model, served.tokenizer, served.template)
    if teacher.model is None:
        raise AssertionError("a teacher has a model, a version or an endpoint")
    plain = config.adapter.model_copy(update={"quantization": four_bits})
    base, template = load_base(teacher.model, plain, config.compute), template_switches(config.model)
    if teacher.adapter is None:
        return Loaded(base.eval(), load_tokenizer(teacher.model), template)

    model = load_adapter(base, teacher.adapter).eval()
    return Loaded(model, load_tokenizer_from(teacher.adapter, teacher.model), template)


def scorer(config: Config, teacher: Teacher, tokenizer: Any) -> Distributions:
    """The teacher at an endpoint as something that tells distributions, asked about a probe.

    Raises Unreachable where nothing answers, UserError where it tells none, or where it doesn't share the student's
    vocabulary or, as far as it says, chat template.
    """
    if teacher.endpoint is None:
        raise AssertionError("a teacher on this machine is loaded")
    found, switches = Distributions(teacher.endpoint, config.distill.top_k), template_switches(config.model)
    distributions.check(found, tokenizer, probe(tokenizer, switches))

    def theirs(messages: Sequence[Mapping[str, Any]], prompt: bool) -> list[int] | None:
        return found.tokenized(messages, prompt, switches)

    if difference := rendering_difference(tokenizer, switches, theirs):
        raise UserError(
            f"{FIELD}.at: distill.method {config.distill.method} needs one chat template, and the teacher's differs: "
            f"{difference}"
        )
    return found


def subject(config: Config, teacher: Teacher, there: Loaded | None) -> Subject:
    """The teacher as something to ask: an endpoint, or what was `loaded`."""
    if teacher.endpoint is not None:
        return EndpointSubject(FIELD, teacher.endpoint, config.seed)
    if there is None:
        raise AssertionError("a teacher on this machine is loaded before it is asked")
    return LocalSubject(
        name=FIELD,
        about=teacher.about,
        model=there.model,
        tokenizer=there.tokenizer,
        template=there.template,
        batch_size=config.compute.eval_batch_size,
        seed=config.seed,
    )
