"""What a plan costs, predicted from shapes: bytes of the file, peak memory, operations, time."""

from autocomp.cost.bytes import (
    fixed_bytes,
    fixed_data_bytes,
    is_bypassed,
    native_infos,
    site_bytes,
    site_data_bytes,
    weight_bytes,
)
from autocomp.cost.device import Device, device_names
from autocomp.cost.flops import decode_flops, prefill_flops, site_flops
from autocomp.cost.measured import cost_model
from autocomp.cost.memory import (
    activation_bytes,
    cache_bytes,
    peak_memory_bytes,
    plan_cache_bytes,
    workspace_bytes,
)
from autocomp.cost.models import CostModel, Roofline, Workload
from autocomp.cost.times import TimeTable

COSTS: dict[str, str] = {
    "weight_bytes": "autocomp.cost.models:WeightBytes",
    "peak_memory_bytes": "autocomp.cost.models:PeakMemoryBytes",
    "decode_ms": "autocomp.cost.models:RooflineDecode",
    "prefill_ms": "autocomp.cost.models:RooflinePrefill",
    "flops": "autocomp.cost.models:Flops",
}

__all__ = [
    "COSTS",
    "CostModel",
    "Device",
    "Roofline",
    "TimeTable",
    "Workload",
    "activation_bytes",
    "cache_bytes",
    "cost_model",
    "decode_flops",
    "device_names",
    "fixed_bytes",
    "fixed_data_bytes",
    "is_bypassed",
    "native_infos",
    "peak_memory_bytes",
    "plan_cache_bytes",
    "prefill_flops",
    "site_bytes",
    "site_data_bytes",
    "site_flops",
    "weight_bytes",
    "workspace_bytes",
]
