"""Accelerators as data. Throughputs are dense (a data sheet's figure with sparsity, halved) and peaks: nothing reaches them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One kind of device."""

    memory_gib: float | None  # of one device, as its driver reports it; None where the machine decides
    memory_gb_per_second: float | None
    bfloat16_tflops: float | None
    fp8_tflops: float | None  # None without FP8 units
    compute_capability: tuple[int, int] | None
    link_gb_per_second: float | None  # between the devices of a machine, one direction
    source: str

    @property
    def is_gpu(self) -> bool:
        return self.compute_capability is not None


ACCELERATORS: Mapping[str, Accelerator] = {
    "cpu": Accelerator(
        memory_gib=None,
        memory_gb_per_second=None,
        bfloat16_tflops=None,
        fp8_tflops=None,
        compute_capability=None,
        link_gb_per_second=None,
        source="processors differ too much for one figure: `polymath estimate --calibrate` measures",
    ),
    "a100": Accelerator(
        memory_gib=79.1,
        memory_gb_per_second=2039,
        bfloat16_tflops=312,
        fp8_tflops=None,
        compute_capability=(8, 0),
        link_gb_per_second=300,
        source="NVIDIA A100 80GB SXM data sheet (June 2021)",
    ),
    "h100": Accelerator(
        memory_gib=79.1,
        memory_gb_per_second=3350,
        bfloat16_tflops=989,
        fp8_tflops=1979,
        compute_capability=(9, 0),
        link_gb_per_second=450,
        source="NVIDIA H100 SXM data sheet (1,979 and 3,958 TFLOP/s with sparsity)",
    ),
    "h200": Accelerator(
        memory_gib=139.8,
        memory_gb_per_second=4800,
        bfloat16_tflops=989,
        fp8_tflops=1979,
        compute_capability=(9, 0),
        link_gb_per_second=450,
        source="NVIDIA H200 SXM data sheet (1,979 and 3,958 TFLOP/s with sparsity)",
    ),
    "b200": Accelerator(
        memory_gib=178.4,
        memory_gb_per_second=8000,
        bfloat16_tflops=2250,
        fp8_tflops=4500,
        compute_capability=(10, 0),
        link_gb_per_second=900,
        source="NVIDIA DGX B200 data sheet, an eighth of its 8 devices (72 PFLOP/s FP8 with sparsity, 1,440 GB)",
    ),
}
