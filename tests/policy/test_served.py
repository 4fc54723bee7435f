"""Settings of registered versions, those of before too."""

from pipelines.config.compose import compose
from pipelines.config.schema import Adapter, Compute, Model
from pipelines.policy.served import completed


def test_a_version_of_before_has_what_came_later_as_it_was_trained() -> None:
    config = compose(["adapter=qlora", "strategy=ddp"]).config
    now = {"model": config.model.model_dump(), "adapter": config.adapter.model_dump()}
    now["compute"] = config.compute.model_dump()
    assert completed(now) == now
    before = {name: dict(block) for name, block in now.items()}
    for name in ("num_processes", "num_nodes", "strategy", "deepspeed", "fsdp", "rendezvous"):
        del before["compute"][name]
    for name in ("train_shared_experts", "train_router"):
        del before["adapter"][name]
    before["adapter"]["quantization"] = {k: v for k, v in now["adapter"]["quantization"].items() if k != "experts"}
    later = ("shared_expert_parameters", "router_parameters")
    before["model"]["targets"] = {k: v for k, v in now["model"]["targets"].items() if k not in later}
    found = completed(before)
    assert Compute.model_validate(found["compute"]) == config.compute
    assert Model.model_validate(found["model"]).targets.router_parameters == []
    # 4-bit bases of before left fused experts in 16 bit.
    quantization = Adapter.model_validate(found["adapter"]).quantization
    assert quantization is not None
    assert not quantization.experts
