"""Binary-coding quantization: a weight as a sum of scaled planes of signs.

``w = Σ_i scale_i · b_i + offset`` with ``b_i ∈ {−1, +1}``, and scales and offset shared by a group
of consecutive inputs of a row. Such a matrix multiplies by table look-ups (LUT-GEMM).

Reference: Park et al. 2022, LUT-GEMM, https://arxiv.org/abs/2206.09557
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats._levels import nearest_level
from autocomp.formats.base import CompressedWeight, Format, torch_dtype
from autocomp.formats.straight_through import straight_through
from autocomp.formats.uniform import Uniform
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits

MOST_BITS = 8
OFFSETS = (None, "float16", "float32")


def signs(bits: int, device: torch.device | None = None) -> Tensor:
    """Return the signs that each code stands for, (2^bits, bits) fp32: bit i set is +1."""
    codes = torch.arange(1 << bits, device=device)[:, None]
    return (codes >> torch.arange(bits, device=device) & 1) * 2.0 - 1.0


@dataclass(frozen=True, slots=True)
class Bcq(Format):
    """Sign planes ``codes`` (out, bits, ceil(in/8)) uint8, a set bit for +1, and their scales.

    ``scale`` is (out, groups, bits) float16, ``offset`` (out, groups).

    Args:
        bits: Planes, 1 to 8.
        group_size: Consecutive inputs that share scales; ``None`` is the whole row.
        offset: ``float16``, or ``float32``, which holds that of any uniform grid exactly, or
            ``None`` without.
    """

    name: ClassVar[str] = "bcq"

    bits: int
    group_size: int | None = None
    offset: str | None = None

    def __post_init__(self) -> None:
        """Check shape, bits, groups and offset.

        Raises:
            PlanError: If one of them is impossible.
        """
        Format.__post_init__(self)
        if not 1 <= self.bits <= MOST_BITS or self.offset not in OFFSETS:
            raise PlanError(
                f"a sum of signs has 1 to {MOST_BITS} planes and an offset of {OFFSETS}, got "
                f"{self.bits} planes and {self.offset!r}."
            )
        size = self.group_size
        if size is not None and (size < 1 or self.shape[1] % size):
            raise PlanError(
                f"a group size of {size} does not divide the {self.shape[1]} inputs of a weight "
                f"of shape {self.shape}."
            )

    @property
    def groups(self) -> int:
        """Number of groups of a row."""
        return self.shape[1] // (self.group_size or self.shape[1])

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes``, ``scale`` and, where there is one, ``offset``."""
        rows, columns = self.shape
        found = {
            "codes": TensorInfo((rows, self.bits, packed_bytes(columns, 1)), "uint8"),
            "scale": TensorInfo((rows, self.groups, self.bits), "float16"),
        }
        if self.offset is not None:
            found["offset"] = TensorInfo((rows, self.groups), self.offset)
        return found

    def pack(self, codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> CompressedWeight:
        """Store a weight.

        Args:
            codes: (out, in) in ``0 … 2^bits − 1``; bit i says the sign in plane i.
            scale: (out, groups, bits).
            offset: (out, groups), where the layout has one.

        Raises:
            NumericalError: If a scale or an offset does not fit its dtype.
            PlanError: If the offset of a layout that has one is missing.
        """
        planes = codes[:, None, :] >> torch.arange(self.bits, device=codes.device)[:, None] & 1
        packed = pack_bits(planes.flatten(0, 1), 1).view(self.shape[0], self.bits, -1)
        tensors = {"codes": packed, "scale": scale.detach().to(torch.float16)}
        if self.offset is not None:
            if offset is None:
                raise PlanError("this layout has an offset, which is missing.")
            tensors["offset"] = offset.detach().to(torch_dtype(self.offset))
        if not all(
            bool(torch.isfinite(tensors[name]).all()) for name in tensors if name != "codes"
        ):
            raise NumericalError("a scale or an offset is not finite in its dtype.")
        return CompressedWeight(self, tensors)

    def levels(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what each code means in each group, (out, groups, 2^bits) fp32."""
        scale = tensors["scale"].to(torch.float32)
        found = scale.new_zeros(*scale.shape[:2], 1 << self.bits)
        for plane, sign in enumerate(signs(self.bits, scale.device).T):
            found += scale[..., plane, None] * sign
        return found if self.offset is None else found + tensors["offset"].float()[..., None]

    def codes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the stored codes, (out, in) int64."""
        rows, columns = self.shape
        packed = tensors["codes"].flatten(0, 1)
        planes = unpack_bits(packed, 1, columns).view(rows, self.bits, columns).to(torch.int64)
        return (planes << torch.arange(self.bits, device=planes.device)[:, None]).sum(dim=1)

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32; the planes add up in their order, the offset last."""
        return self._decode(self.codes(tensors), tensors)

    def _decode(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        grouped = codes.view(self.shape[0], self.groups, -1)
        return self.levels(tensors).gather(2, grouped).view(self.shape)

    def nearest(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (out, in) int64 of the nearest sums of the stored scales.

        Several codes may mean one sum; a stored code stays where it means the nearest.
        """
        levels = self.levels(tensors).flatten(0, 1)
        found = nearest_level(weight.detach().reshape(len(levels), -1), levels).view(self.shape)
        if "codes" not in tensors:
            return found
        stored = self.codes(tensors)
        same = self._decode(found, tensors) == self._decode(stored, tensors)
        return torch.where(same, stored, found)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take the nearest sums of the stored scales."""
        return straight_through(weight, self._decode(self.nearest(weight, tensors), tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest sums of the stored scales."""
        return self.pack(self.nearest(weight, tensors), tensors["scale"], tensors.get("offset"))

    @classmethod
    def of_uniform(cls, weight: CompressedWeight) -> CompressedWeight:
        """Return a weight on a uniform grid as a sum of signs, the same values to the bit.

        The bits ``t_i`` of a code are signs, ``b_i = 2 t_i − 1``, so ``s (q − z)`` has the scales
        ``s·2^(i−1)`` and the offset ``Σ scale_i − s z``, in float32.

        Raises:
            PlanError: If the weight is in another format.
            NumericalError: If a scale does not fit float16.
        """
        layout = weight.layout
        if not isinstance(layout, Uniform):
            raise PlanError(f"only a uniform weight is such a sum exactly, not a {layout.name}.")
        leaf = layout.grid_leaf(weight.to_dense(), weight.tensors)
        scale = leaf.scale[..., None] * 2.0 ** (
            torch.arange(leaf.bits, device=leaf.scale.device) - 1
        )
        offset = leaf.scale * ((2**leaf.bits - 1) / 2 - leaf.zero)
        packed = cls(layout.shape, leaf.bits, layout.group_size, "float32")
        return packed.pack(leaf.codes.to(torch.int64), scale, offset)
