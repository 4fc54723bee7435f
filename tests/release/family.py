"""A version with all that a chain can have."""

from pipelines.release.ancestry import Ancestry
from pipelines.release.family import Family, Holder, Parent

DIGEST = "0123456789abcdef" * 4


def ancestry(num_sources: int = 14) -> Ancestry:
    """Of an adapter by grpo, from a parent, two teachers and so many sources with long names."""
    sources = [
        {
            "name": f"source_with_a_long_name_{number}_of_many",
            "place": f"data/{number}.csv",
            "kind": "path",
            "split": "train",
            "license": "CC-BY-4.0",
            "sha256": f"{number:064x}",
            "revision": None,
        }
        for number in range(num_sources)
    ]
    teachers = [
        {"kind": "version", "version": "models:/a_very_long_name_of_a_model/12", "license": {"id": "Apache-2.0"}},
        {"kind": "endpoint", "endpoint": "https://api.example.com/v1/some/long/path", "license": {"id": "proprietary"}},
    ]
    return Ancestry(
        base={
            "id": "owner/a-base-with-a-very-long-name-of-its-own",
            "revision": "a" * 40,
            "license": "Apache-2.0",
            "files": {"config.json": "1" * 64, "model.safetensors": "2" * 64},
            "quantization": None,
        },
        rows=DIGEST,
        sources=sources,
        contamination={"present": True, "removed": 1240, "remaining": 12, "clean": False},
        adapter={"digest": DIGEST, "stage": "grpo", "run": "a" * 32, "parent": {"digest": "b" * 64}},
        teachers=teachers,
        generated=DIGEST,
        scores={"digest": DIGEST, "run": "c" * 32, "heldout": DIGEST, "created": "2026-11-26T16:00:00+00:00"},
        commit="f" * 40,
        dirty=False,
        code="d" * 64,
        lock="e" * 64,
        libraries={"torch": "2.13.0", "peft": "0.21.2"},
        seed=42,
    )


def family() -> Family:
    at = "2026-11-26 16:26:11 UTC"
    return Family(
        version=Holder("models:/dev.a_very_long_name_of_a_model/123", at, ["candidate"]),
        tags={"gate.result": "promoted to staging", "gate.policy": "staging", "gate.accuracy": "pass  accuracy: 0.84"},
        digest=DIGEST,
        ancestry=ancestry(),
        metrics={
            f"eval/correctness/accuracy{end}": value for end, value in (("", 0.84), ("_low", 0.82), ("_high", 0.85))
        },
        parents=[Parent("b" * 64, "sft", "d" * 32, "models:/x/1"), Parent("9" * 64, None, None, None)],
        copies=[Holder("models:/prod.x/1", at, ["champion", "champion-previous"])],
        runs={"a" * 32: True, "c" * 32: False, "d" * 32: True},
    )
