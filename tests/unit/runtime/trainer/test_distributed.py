"""How the ranks of a job find each other."""

from typing import Any

import pytest
import torch.distributed as dist
from polymath.runtime.trainer import bootstrap
from polymath.runtime.trainer.build import start_distributed
from torchtitan.distributed import utils as titan_distributed


@pytest.mark.parametrize(("on_cpu", "backends"), [(True, {"cpu": "gloo"}), (False, {"cuda": "nccl", "cpu": "gloo"})])
def test_ranks_on_gpus_can_agree_on_tensors_of_a_cpu_too(
    on_cpu: bool, backends: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def init_process_group(backend: str, **_: Any) -> None:
        asked.append(backend)

    monkeypatch.setattr(bootstrap, "ON_CPU", on_cpu)
    monkeypatch.setattr(titan_distributed, "device_type", "cpu" if on_cpu else "cuda")
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    start_distributed()
    found = dist.distributed_c10d.BackendConfig(dist.Backend(asked[0])).get_device_backend_map()
    assert backends.items() <= found.items()
