"""KIVI: keys in few bits per channel, values per token, the latest tokens in full precision."""

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import DTYPE_BYTES, SiteKind
from autocomp.core.stats import Needs
from autocomp.kernels.bits import pack_bits, packed_bytes
from autocomp.kernels.kv_attention import Stored

BITS = (2, 4, 8)
HALF_BYTES = 2


@dataclass(frozen=True, slots=True)
class KiviSpec:
    """Bits, groups and window of a cache: ``kivi-k2v2``, ``kivi-k8v4``, ``kivi-k4v4g64r256``.

    Token: ``kivi-k<bits>v<bits>[g<group>][r<residual>]``, without a group of 32 or a residual of
    128.

    Args:
        key_bits: Bits of a key, one of 2, 4, 8.
        value_bits: Bits of a value, one of 2, 4, 8.
        group_size: Consecutive tokens of a key channel, and at most so many channels of a value,
            that share a scale.
        residual_length: Tokens; so many latest values stay in full precision, and keys are stored
            in blocks of so many. A multiple of the group size.
    """

    method: ClassVar[str] = "kivi"
    slot: ClassVar[str] = "cache"

    key_bits: int
    value_bits: int
    group_size: int = 32
    residual_length: int = 128

    def __post_init__(self) -> None:
        """Check the fields."""
        for bits in (self.key_bits, self.value_bits):
            if bits not in BITS:
                raise PlanError(f"kivi: bits must be one of {BITS}, got {bits}.")
        if self.group_size < 1:
            raise PlanError(f"kivi: group size must be positive, got {self.group_size}.")
        if self.residual_length < 1 or self.residual_length % self.group_size:
            raise PlanError(
                f"kivi: the residual must be a positive multiple of the group size "
                f"{self.group_size}, got {self.residual_length}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        group = "" if self.group_size == 32 else f"g{self.group_size}"
        residual = "" if self.residual_length == 128 else f"r{self.residual_length}"
        return f"kivi-k{self.key_bits}v{self.value_bits}{group}{residual}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token; the defaults may be spelled out.

        Raises:
            PlanError: If the token cannot be read or a field is out of range.
        """
        found = re.fullmatch(r"kivi-k(\d)v(\d)(?:g(\d+))?(?:r(\d+))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected kivi-k<bits>v<bits>[g<group>][r<residual>], such "
                "as kivi-k4v4."
            )
        keys, values, group, residual = found.groups()
        return cls(int(keys), int(values), int(group or 32), int(residual or 128))


class MinMax(NamedTuple):
    """Codes on the grid from the least to the largest value of each group.

    Args:
        codes: Shape of the groups, uint8.
        scale: The same shape with one entry a group, float16; zero where a group is constant.
        low: Like ``scale``, the least value.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    @classmethod
    def of(cls, groups: Tensor, bits: int, dim: int) -> Self:
        """Return the codes of ``groups``, any float dtype, whose members lie along ``dim``."""
        groups = groups.float()
        low = groups.amin(dim, keepdim=True).half()
        scale = ((groups.amax(dim, keepdim=True) - low.float()) / (2**bits - 1)).half()
        step = scale.float().masked_fill(scale == 0, 1.0)
        codes = ((groups - low.float()) / step).round_().clamp_(0, 2**bits - 1)
        return cls(codes.to(torch.uint8), scale, low)

    def dense(self) -> Tensor:
        """Return ``codes · scale + low`` in fp32."""
        return self.codes * self.scale.float() + self.low.float()


class Kivi:
    """Rounds keys over tokens and values over channels, ``x̂ = q · s + min``.

    ``s = (max − min)/(2^b − 1)`` and ``q = round((x − min)/s)``, with s and min in float16: for
    every channel of G consecutive keys, aligned to multiples of G from the first token, and for
    every G channels of a value (the largest divisor of the head width up to G). What float16 holds
    moves by at most s/2.

    With L tokens in the cache the first ``R·⌊L/R⌋`` keys and ``max(0, L − R)`` values are stored
    in few bits, however the cache came to hold them; a token attends to itself, and to what was
    stored before it came.

    Reference:
        Liu et al. 2024, KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache,
        https://arxiv.org/abs/2402.02750
    """

    scope: ClassVar[Scope] = "cache"
    spec: ClassVar[type[KiviSpec]] = KiviSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "cache keys per channel and values per token, the latest as they are"
    reference: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"cache"})

    def nbytes(self, spec: KiviSpec, shape: tuple[int, int], context: int, dtype: str) -> int:
        """Return bytes of one sequence's keys and values of one layer; shape (kv heads, width).

        Packed codes, two float16 a group, and the latest tokens in ``dtype``.
        """
        heads, width = shape
        keys, values = self.stored(spec, context)
        codes = width * packed_bytes(keys, spec.key_bits)
        codes += values * packed_bytes(width, spec.value_bits)
        groups = width * (keys // spec.group_size)
        groups += values * (width // channel_group(spec, width))
        latest = (2 * context - keys - values) * width * DTYPE_BYTES[dtype]
        return heads * (codes + 2 * HALF_BYTES * groups + latest)

    def keys(self, spec: KiviSpec, keys: Tensor) -> Tensor:
        """Return (…, tokens, width) stored keys, tokens a multiple of G from a multiple of G."""
        groups = keys.unflatten(-2, (keys.shape[-2] // spec.group_size, spec.group_size))
        rounded = MinMax.of(groups, spec.key_bits, -2).dense()
        return rounded.flatten(-3, -2).to(keys.dtype)

    def values(self, spec: KiviSpec, values: Tensor) -> Tensor:
        """Return (…, tokens, width) stored values."""
        size = channel_group(spec, values.shape[-1])
        groups = values.unflatten(-1, (values.shape[-1] // size, size))
        return MinMax.of(groups, spec.value_bits, -1).dense().flatten(-2).to(values.dtype)

    def pack_keys(self, spec: KiviSpec, keys: Tensor) -> Stored:
        """Return what :meth:`keys` decodes, of (batch, heads, tokens, width) in whole bytes."""
        return _packed(keys.transpose(-1, -2), spec.group_size, spec.key_bits)

    def pack_values(self, spec: KiviSpec, values: Tensor) -> Stored:
        """Return what :meth:`values` decodes, of (batch, heads, tokens, width)."""
        return _packed(values, channel_group(spec, values.shape[-1]), spec.value_bits)

    def stored(self, spec: KiviSpec, tokens: int) -> tuple[int, int]:
        """Return how many of the first ``tokens`` keys, and values, are stored in few bits."""
        block = spec.residual_length
        return tokens // block * block, max(0, tokens - block)


def _packed(states: Tensor, group_size: int, bits: int) -> Stored:
    """Return the codes of (…, n), groups of consecutive entries along the last dimension."""
    groups = states.contiguous().unflatten(-1, (states.shape[-1] // group_size, group_size))
    codes, scale, low = MinMax.of(groups, bits, -1)
    packed = pack_bits(codes.view(-1, states.shape[-1]), bits).view(*states.shape[:-1], -1)
    return Stored(packed, scale.squeeze(-1), low.squeeze(-1), bits)


def channel_group(spec: KiviSpec, width: int) -> int:
    """Return how many channels of a value share a scale: the largest divisor of ``width`` ≤ G."""
    return max(size for size in range(1, min(spec.group_size, width) + 1) if width % size == 0)
