"""A few whole columns in float16 in a matrix of zeros, such as those too sensitive to round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.straight_through import straight_through


@dataclass(frozen=True, slots=True)
class Columns(Format):
    """The correction of a ``Sum`` whose base is zero there.

    ``values`` (out, count) float16; ``index`` (count,) int16, or int32 where there are more than
    2^15 inputs, ascending.

    Args:
        count: How many columns are stored.
    """

    name: ClassVar[str] = "columns"

    count: int

    def __post_init__(self) -> None:
        """Check shape and count.

        Raises:
            PlanError: If the count exceeds the columns.
        """
        Format.__post_init__(self)
        if not 0 <= self.count <= self.shape[1]:
            raise PlanError(
                f"a weight of shape {self.shape} has {self.shape[1]} columns, got {self.count}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``values`` and ``index``."""
        return {
            "values": TensorInfo((self.shape[0], self.count), "float16"),
            "index": TensorInfo((self.count,), "int16" if self.shape[1] <= 1 << 15 else "int32"),
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector: by the stored columns only."""
        return self.shape[0] * self.count

    def pack(self, mask: Tensor, dense: Tensor) -> CompressedWeight:
        """Store the marked columns.

        Args:
            mask: (in,) bool, True is stored.
            dense: (out, in) values; the rest is not read.

        Raises:
            PlanError: If the mask marks another number of columns than the layout.
        """
        index = mask.nonzero()[:, 0]
        if len(index) != self.count:
            raise PlanError(f"the mask marks {len(index)} columns, the layout has {self.count}.")
        narrow = self.tensors()["index"].dtype == "int16"
        return CompressedWeight(
            self,
            {
                "values": dense.detach()[:, index].to(torch.float16),
                "index": index.to(torch.int16 if narrow else torch.int32),
            },
        )

    def _placed(self, values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return (out, count) values in their columns of zeros, (out, in) fp32."""
        dense = torch.zeros(self.shape, device=values.device)
        return dense.index_copy_(1, tensors["index"].long(), values.to(torch.float32))

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return self._placed(tensors["values"], tensors)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep the columns, round their values to float16."""
        stored = self.store(weight, tensors)
        mask = self._placed(torch.ones_like(tensors["values"]), tensors).to(torch.bool)
        return straight_through(weight, stored.to_dense(), mask)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Keep the columns, store their values."""
        values = weight.detach()[:, tensors["index"].long()].to(torch.float16)
        return CompressedWeight(self, {**tensors, "values": values})
