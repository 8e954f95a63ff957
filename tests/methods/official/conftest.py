"""The layer that the authors' code was run on, and what it made of it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import compress
from autocomp.testing.methods import output_error

HERE = Path(__file__).parent


ROLL = 7
LAYERS = 8


class Layer:
    """A weight (out, in), its inputs (tokens, in) and their statistics.

    Losses are kept of ``LAYERS`` layers: the weight is rolled by ``ROLL`` columns for each.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.weight, self.inputs = tensors["weight"].float(), tensors["inputs"].float()
        self.hessian = self.inputs.T @ self.inputs / len(self.inputs)
        self.stats = Stats(
            tokens=len(self.inputs),
            hessian=self.hessian,
            norms=self.hessian.diagonal().sqrt(),
            mean=self.inputs.mean(0),
            absmean=self.inputs.abs().mean(0),
            sample=self.inputs,
            sensitivity=tensors["sensitivity"].float(),
        )

    def made(self, token: str, weight: Tensor | None = None, stats: Stats | None = None) -> Tensor:
        """Return what a weight is after a layer spec."""
        weight = self.weight if weight is None else weight
        spec, stats = LayerSpec.parse(token), stats or self.stats
        return compress(weight, spec, stats, "float16").to_dense()

    def error(self, dense: Tensor) -> float:
        """Return ``tr(D H Dᵀ)`` of the change."""
        return output_error(self.weight, dense, self.stats)

    def rolled(self) -> list[Tensor]:
        """Return the weights of all layers."""
        return [self.weight.roll(number * ROLL, 1) for number in range(LAYERS)]

    def ratio(self, token: str, losses: Tensor) -> float:
        """Return ``tr(D H Dᵀ)`` over that of theirs, (layers,), on average."""
        ours = [output_error(w, self.made(token, w), self.stats) for w in self.rolled()]
        return sum(ours) / float(losses.sum())

    def distance_ratio(self, token: str, losses: Tensor) -> float:
        """Return ``‖D‖²`` over that of theirs, (layers,), on average."""
        ours = [float((self.made(token, w) - w).square().sum()) for w in self.rolled()]
        return sum(ours) / float(losses.sum())

    def grid(self, bits: int, group: int, columns: Tensor | None = None) -> AffineGrid:
        """Return asymmetric grids whose scales are not rounded to float16, as theirs."""
        weight = self.weight if columns is None else self.weight[:, columns]
        low, high = weight.reshape(len(weight), -1, group).aminmax(dim=-1)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        return AffineGrid(scale, (-low / scale).round(), bits)


@pytest.fixture
def layer() -> Layer:
    return Layer(load_file(HERE / "site.safetensors"))


@pytest.fixture
def official(request):
    """The tensors of the method that the test is named after: ``test_<method>_…``."""
    method = request.function.__name__.split("_")[1]
    return load_file(HERE / f"{method}.safetensors")
