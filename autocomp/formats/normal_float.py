"""NormalFloat: codes at quantiles of a normal distribution, times the magnitude of a block.

Magnitudes are float32, or quantized themselves: 8 bits each with one float32 a 256 of them.

Reference: Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits
from autocomp.kernels.codebook_matmul import codebook_matmul, codebook_weight

LARGEST_QUANTILE = 0.9677083
MAGNITUDE_BLOCK = 256
MAGNITUDE_DECADES = 7


@lru_cache(maxsize=16)
def normal_levels(bits: int) -> Tensor:
    """Return the levels of NormalFloat in ascending order, (2^bits,) fp32, from −1 to 1, with 0.

    With ``p`` from 0.9677083 to ½: ``2^(bits−1)`` positive quantiles and one negative fewer, at
    equally spaced probabilities, the ½ of both left out; 0; all divided by the largest.
    """
    half = 1 << (bits - 1)

    def quantiles(count: int) -> list[float]:
        step = (LARGEST_QUANTILE - 0.5) / count
        return [NormalDist().inv_cdf(LARGEST_QUANTILE - step * i) for i in range(count)]

    negative = [-value for value in quantiles(half - 1)] if half > 1 else []
    found = torch.tensor([*negative, 0.0, *quantiles(half)], dtype=torch.float64).sort().values
    return (found / found[-1]).to(torch.float32)


@lru_cache(maxsize=1)
def magnitude_levels() -> Tensor:
    """Return the 256 levels of an 8-bit magnitude, ascending, (256,) fp32, from −0.993 to 1.

    Decade d of seven, ``10^(d−6) · [0.1, 1]``, is cut in ``2^d`` parts, whose middles are levels,
    with both signs; 0 and 1 make them 256. Small magnitudes keep their order, large ones digits.
    """
    found = [0.0, 1.0]
    for decade in range(MAGNITUDE_DECADES):
        parts = 1 << decade
        for part in range(parts):
            middle = 0.1 + 0.9 * (part + 0.5) / parts
            value = middle * 10.0 ** (decade - MAGNITUDE_DECADES + 1)
            found += [value, -value]
    return torch.tensor(sorted(found), dtype=torch.float64).to(torch.float32)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest of ascending levels (k,) of each value, int64."""
    middles = ((levels[1:].double() + levels[:-1].double()) / 2).to(torch.float32)
    return torch.bucketize(values, middles.to(values.device))


@dataclass(frozen=True, slots=True)
class NormalFloat(Format):
    """``codes`` (1, ceil(out·in·bits/8)) uint8 and magnitudes of blocks of the flattened weight.

    Decoding is ``w = magnitude · level[code]``. The magnitudes are ``absmax`` (blocks,) float32;
    doubly quantized ``absmax`` (blocks,) uint8, ``absmax_scale`` (ceil(blocks/256),) float32 and
    ``absmax_mean`` (1,) float32, which mean ``level[absmax] · absmax_scale + absmax_mean``. The
    last block, and the last 256, may be shorter.

    Args:
        bits: Bits a code, 2 to 8.
        block: Consecutive weights, row by row, that share a magnitude.
        double: Whether the magnitudes are quantized.
    """

    name: ClassVar[str] = "normal_float"

    bits: int = 4
    block: int = 64
    double: bool = True

    def __post_init__(self) -> None:
        """Check shape, bits and block.

        Raises:
            PlanError: If bits or block are impossible.
        """
        Format.__post_init__(self)
        if not 2 <= self.bits <= 8 or self.block < 1:
            raise PlanError(
                f"NormalFloat has 2 to 8 bits a code and a positive block, got {self.bits} bits "
                f"and a block of {self.block}."
            )

    @property
    def levels(self) -> Tensor:
        """What the codes mean under a magnitude of 1, (2^bits,) fp32."""
        return normal_levels(self.bits)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.shape[0] * self.shape[1] // self.block)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes`` and the tensors of the magnitudes."""
        packed = packed_bytes(self.shape[0] * self.shape[1], self.bits)
        codes = TensorInfo((1, packed), "uint8")
        if not self.double:
            return {"codes": codes, "absmax": TensorInfo((self.blocks,), "float32")}
        return {
            "codes": codes,
            "absmax": TensorInfo((self.blocks,), "uint8"),
            "absmax_scale": TensorInfo((-(-self.blocks // MAGNITUDE_BLOCK),), "float32"),
            "absmax_mean": TensorInfo((1,), "float32"),
        }

    def quantize(self, weight: Tensor) -> CompressedWeight:
        """Store the nearest levels under the largest magnitude of each block, (out, in) fp32."""
        weight = weight.detach().to(torch.float32)
        magnitudes = self._magnitudes(self._blocked(weight).abs().amax(dim=1))
        return self.store(weight, magnitudes)

    def _blocked(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) as (blocks, block), zeros behind its end."""
        flat = weight.flatten()
        return functional.pad(flat, (0, self.blocks * self.block - len(flat))).view(-1, self.block)

    def _magnitudes(self, absmax: Tensor) -> dict[str, Tensor]:
        """Return the stored tensors of magnitudes (blocks,) fp32."""
        if not self.double:
            return {"absmax": absmax}
        mean = absmax.mean(dtype=torch.float64).to(torch.float32)
        rest = absmax - mean
        parts = -(-self.blocks // MAGNITUDE_BLOCK)
        padded = functional.pad(rest, (0, parts * MAGNITUDE_BLOCK - self.blocks))
        scale = padded.view(parts, -1).abs().amax(dim=1)
        relative = rest / self._spread(torch.where(scale == 0, 1.0, scale))
        codes = _nearest(relative, magnitude_levels()).to(torch.uint8)
        return {"absmax": codes, "absmax_scale": scale, "absmax_mean": mean[None]}

    def _spread(self, scale: Tensor) -> Tensor:
        """Return what belongs to each block, (blocks,), of what belongs to 256."""
        return scale.repeat_interleave(MAGNITUDE_BLOCK)[: self.blocks]

    def magnitudes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the magnitude of each block, (blocks,) fp32."""
        absmax = tensors["absmax"]
        if not self.double:
            return absmax
        levels = magnitude_levels().to(absmax.device)[absmax.to(torch.int64)]
        return levels * self._spread(tensors["absmax_scale"]) + tensors["absmax_mean"]

    def _codes(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (out · in,) int64 of the nearest levels under stored magnitudes."""
        sizes = self.magnitudes(tensors)[:, None]
        relative = self._blocked(weight.detach()) / torch.where(sizes == 0, 1.0, sizes)
        return _nearest(relative, self.levels).flatten()[: weight.numel()]

    def _decode(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        sizes = self.magnitudes(tensors)
        levels = self.levels.to(sizes.device)[codes]
        return (self._blocked(levels) * sizes[:, None]).flatten()[: len(codes)].view(self.shape)

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        count = self.shape[0] * self.shape[1]
        codes = unpack_bits(tensors["codes"], self.bits, count)[0]
        return self._decode(codes.to(torch.int64), tensors)

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the codes stay packed where rows are whole blocks."""
        if not self._has_whole_rows:
            return Format.matmul(self, tensors, inputs)
        codes, levels, scale = self._operands(tensors)
        return codebook_matmul(inputs, codes, levels, scale, self.bits)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Decode rows (n, in) fp32, and no others where no row splits a block or byte."""
        if not self._has_whole_rows:
            return Format.rows(self, tensors, index)
        codes, levels, scale = self._operands(tensors)
        return codebook_weight(codes[index], levels, scale[index], self.bits, self.shape[1])

    @property
    def _has_whole_rows(self) -> bool:
        """Whether every row begins with a block and a byte."""
        return self.shape[1] % self.block == 0 and self.shape[1] * self.bits % 8 == 0

    def _operands(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (out, bytes), levels (1, 2^bits) and magnitudes (out, groups) by row."""
        codes = tensors["codes"].view(self.shape[0], -1)
        scale = self.magnitudes(tensors).view(self.shape[0], -1)
        return codes, self.levels.to(scale.device)[None], scale

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take the nearest levels under the stored magnitudes."""
        return straight_through(weight, self._decode(self._codes(weight, tensors), tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest levels under the stored magnitudes."""
        codes = pack_bits(self._codes(weight, tensors)[None], self.bits)
        kept = {name: tensor for name, tensor in tensors.items() if name != "codes"}
        return CompressedWeight(self, {"codes": codes, **kept})
