"""What a plan costs, predicted from shapes: bytes of the file, peak memory, operations."""

from autocomp.cost.bytes import fixed_bytes, is_bypassed, native_infos, site_bytes, weight_bytes
from autocomp.cost.flops import decode_flops, prefill_flops
from autocomp.cost.memory import (
    activation_bytes,
    cache_bytes,
    peak_memory_bytes,
    plan_cache_bytes,
)

__all__ = [
    "activation_bytes",
    "cache_bytes",
    "decode_flops",
    "fixed_bytes",
    "is_bypassed",
    "native_infos",
    "peak_memory_bytes",
    "plan_cache_bytes",
    "prefill_flops",
    "site_bytes",
    "weight_bytes",
]
