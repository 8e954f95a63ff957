"""A few float16 values in a matrix of zeros, such as the outliers beside a rounded weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.dense_sparse_matmul import dense_sparse_matmul, sparse_rows


def csr(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, columns and row starts, as the kernel operation takes them."""
    return tensors["values"], tensors["columns"], tensors["rows"]


@dataclass(frozen=True, slots=True)
class Outliers(Format):
    """Compressed sparse rows, the correction of a ``Sum`` whose base is of any format.

    ``values`` (count,) float16 row by row; ``columns`` (count,) int16, or int32 where there are
    more than 2^15 inputs; ``rows`` (out + 1,) int32, where each row begins among them. So an
    outlier takes 32 bits, and a row 32 more. What is stored is *added* to the base, hence the
    difference of the weight and what the base holds in its place.

    Args:
        count: How many are stored; a count, not a threshold, so the size follows from it.
    """

    name: ClassVar[str] = "outliers"

    count: int

    def __post_init__(self) -> None:
        """Check shape and count.

        Raises:
            PlanError: If the count exceeds the weights.
        """
        Format.__post_init__(self)
        if not 0 <= self.count <= self.shape[0] * self.shape[1]:
            raise PlanError(
                f"a weight of shape {self.shape} has between 0 and "
                f"{self.shape[0] * self.shape[1]} outliers, got {self.count}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``values``, ``columns`` and ``rows``."""
        return {
            "values": TensorInfo((self.count,), "float16"),
            "columns": TensorInfo((self.count,), "int16" if self.shape[1] <= 1 << 15 else "int32"),
            "rows": TensorInfo((self.shape[0] + 1,), "int32"),
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector: by the stored values only."""
        return self.count

    def pack(self, mask: Tensor, dense: Tensor) -> CompressedWeight:
        """Store the marked values.

        Args:
            mask: (out, in) bool, True is stored.
            dense: (out, in) values; the rest is not read.

        Raises:
            PlanError: If the mask marks another number of values than the layout.
        """
        if int(mask.sum()) != self.count:
            raise PlanError(
                f"the mask of a weight of shape {self.shape} marks {int(mask.sum())} outliers, "
                f"the layout has {self.count}."
            )
        starts = torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))
        columns = mask.nonzero()[:, 1]
        narrow = self.tensors()["columns"].dtype == "int16"
        return CompressedWeight(
            self,
            {
                "values": dense.detach()[mask].to(torch.float16),
                "columns": columns.to(torch.int16 if narrow else torch.int32),
                "rows": starts.to(torch.int32),
            },
        )

    def marked(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the mask (out, in) bool, True is stored."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=tensors["rows"].device)
        mask[sparse_rows(tensors["rows"]), tensors["columns"].long()] = True
        return mask

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        dense = torch.zeros(self.shape, device=tensors["values"].device)
        return dense.masked_scatter_(self.marked(tensors), tensors["values"].to(torch.float32))

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in) by the stored values only."""
        return dense_sparse_matmul(inputs, None, *csr(tensors))

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep the places, round their values to float16."""
        mask = self.marked(tensors)
        values = weight.detach().to(torch.float16).to(torch.float32).masked_fill(~mask, 0.0)
        return straight_through(weight, values, mask)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Keep the places, store their values."""
        values = weight.detach()[self.marked(tensors)].to(torch.float16)
        return CompressedWeight(self, {**tensors, "values": values})
