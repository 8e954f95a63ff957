"""Input steps: what happens to the input of a linear before its stored weight multiplies it.

A linear step T changes nothing by itself, ``y = (W T⁻¹)(T x)``; it makes the weight or the input
easier to round. Rounding the input is a step too, one that the weight does not see.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError, StoreError
from autocomp.core.registry import STEPS
from autocomp.core.sketch import TensorInfo
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.hadamard import hadamard
from autocomp.kernels.quantize_activations import SMALLEST_ABSMAX

GRANULARITIES = ("token", "tensor")


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """A step with its stored tensors; subclasses are named in ``STEPS``.

    Class attributes: ``name`` (its key in ``STEPS``), ``version`` (raise it when stored tensors
    change meaning) and ``diagonal`` (it mixes no channels and turns no sign, so that
    ``|T x| = T |x|``).

    Args:
        in_features: Width of the input.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    diagonal: ClassVar[bool] = False

    in_features: int

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the stored tensors by local name; none by default."""
        return {}

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by matrices; what works by elements counts none."""
        return 0

    @abstractmethod
    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``T x`` for inputs (…, in), in their dtype; computed in fp32."""

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W T⁻¹``, (out, in), the weight to store; unchanged by default."""
        return weight

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W' T``, (out, in), the inverse of :meth:`absorb`; unchanged by default."""
        return weight

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :func:`step_from_json` reads back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"step": self.name, "version": self.version, **values}


def step_from_json(data: Mapping[str, Any] | None) -> Step | None:
    """Return the step of its JSON form, which may be ``None``.

    Raises:
        ConfigError: If the step is unknown.
        StoreError: If it was written by another version, or fields are missing or unknown.
    """
    if data is None:
        return None
    kind: type[Step] = STEPS[data.get("step", "")]
    if data.get("version") != kind.version:
        raise StoreError(
            f"input step {kind.name} of version {data.get('version')!r} cannot be read; this "
            f"autocomp reads version {kind.version}. Compress the model again."
        )
    try:
        return kind(**{key: data[key] for key in data if key not in ("step", "version")})
    except TypeError as error:
        raise StoreError(f"the description of a {kind.name} step is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class Scale(Step):
    """``x / s`` channel by channel, ``scale`` (in,) float16; the weight's columns are times s."""

    name: ClassVar[str] = "scale"
    diagonal: ClassVar[bool] = True

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``scale``."""
        return {"scale": TensorInfo((self.in_features,), "float16")}

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``x / s``."""
        return (inputs.float() / tensors["scale"].float()).to(inputs.dtype)

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W · s``."""
        return weight * tensors["scale"].to(weight.dtype)

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W' / s``."""
        return weight / tensors["scale"].to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Permutation(Step):
    """``x`` in another order, ``order`` (in,) int16, int32 above 2^15 inputs: the channels' names.

    ``T x = x[order]``; the weight's columns are put in the same order.
    """

    name: ClassVar[str] = "permutation"
    diagonal: ClassVar[bool] = True

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``order``."""
        dtype = "int16" if self.in_features <= 1 << 15 else "int32"
        return {"order": TensorInfo((self.in_features,), dtype)}

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the channels in their order."""
        return inputs[..., tensors["order"].long()]

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the columns in their order."""
        return weight[:, tensors["order"].long()]

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the columns where they came from."""
        return torch.empty_like(weight).index_copy_(1, tensors["order"].long(), weight)


@dataclass(frozen=True, slots=True)
class Rotation(Step):
    """``T = (F₁ ⊗ F₂ ⊗ …) P D``: random signs D, a random permutation P, small orthogonal factors.

    Nothing is stored but the seed. ``hadamard``: two Hadamard matrices over their roots, whose
    sizes multiply to the largest power of two that divides the width, and a random orthogonal
    matrix of the rest. ``orthogonal``: two random orthogonal matrices, of the two most equal
    divisors of the width: a Kronecker product. ``full``: one random orthogonal matrix. A product
    takes ``in · Σ size(Fᵢ)`` multiplications, which is ``in²`` for ``full`` alone.

    Args:
        kind: ``hadamard``, ``orthogonal`` or ``full``.
        seed: Seed of signs, permutation and factors.
    """

    name: ClassVar[str] = "rotation"

    kind: str
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the kind.

        Raises:
            PlanError: If it is unknown.
        """
        if self.kind not in ROTATIONS:
            raise PlanError(f"a rotation is {' or '.join(ROTATIONS)}, got {self.kind!r}.")

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by the factors: ``in · Σ size(Fᵢ)``."""
        factors, *_ = self._parts(torch.empty(0))
        return self.in_features * sum(len(factor) for factor in factors)

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``T x``."""
        return self._turn(inputs.float()).to(inputs.dtype)

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W Tᵀ``: every row turned like an input."""
        return self._turn(weight)

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W' T``."""
        factors, order, signs = self._parts(weight)
        turned = _kronecker(weight, [factor.T for factor in factors])
        return torch.empty_like(turned).index_copy_(-1, order, turned) * signs

    def _turn(self, rows: Tensor) -> Tensor:
        factors, order, signs = self._parts(rows)
        mixed = (rows * signs)[..., order]
        fast = rows.device.type != "cpu" and not mixed.requires_grad
        if self.kind == "hadamard" and fast:
            return _transformed(mixed, factors)
        return _kronecker(mixed, factors)

    def _parts(self, like: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        return _rotation(self.in_features, self.kind, self.seed, like.dtype, like.device)


@dataclass(frozen=True, slots=True)
class ScaledRotation(Rotation):
    """``T x = R (x / s)``: a rotation R behind ``scale`` s (in,) float16, which is stored."""

    name: ClassVar[str] = "scaled-rotation"

    @property
    def _scale(self) -> Scale:
        return Scale(self.in_features)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``scale``."""
        return self._scale.tensors()

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``R (x / s)``."""
        return self._turn(inputs.float() / tensors["scale"].float()).to(inputs.dtype)

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``(W · s) Rᵀ``."""
        return self._turn(self._scale.absorb(weight, tensors))

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``(W' R) / s``."""
        return self._scale.merge(Rotation.merge(self, weight, {}), tensors)


def _kronecker(rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return ``(F₁ ⊗ F₂ ⊗ …) x`` of rows (…, in): each factor takes its axis and moves it last."""
    shape = rows.shape
    for factor in factors:
        grid = rows.reshape(*shape[:-1], len(factor), -1)
        rows = (factor @ grid).transpose(-1, -2).reshape(shape)
    return rows


def _transformed(rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return what :func:`_kronecker` does for Hadamard factors, by one transform of all of them.

    On a processor the products with small factors are faster. It has no gradient.
    """
    power = rows.shape[-1] & -rows.shape[-1]
    grid = rows.reshape(-1, power, rows.shape[-1] // power)
    if grid.shape[2] > 1:
        grid = grid @ factors[-1].T
    turned = hadamard(grid.transpose(1, 2).reshape(-1, power))
    return turned.view(-1, grid.shape[2], power).transpose(1, 2).reshape(rows.shape)


@lru_cache(maxsize=64)
def _rotation(
    size: int, kind: str, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return the factors, the permutation and the signs; drawn in fp64 on the CPU."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        order = torch.randperm(size, generator=generator)
        factors = ROTATIONS[kind](size, generator)
        kept = tuple(factor.to(device, dtype) for factor in factors if len(factor) > 1)
        return kept, order.to(device), signs.to(device, dtype)


def _hadamard_factors(size: int, generator: torch.Generator) -> list[Tensor]:
    """Return two Hadamard factors and the random one of what is left."""
    power = (size & -size).bit_length() - 1
    left, right = 1 << (power + 1) // 2, 1 << power // 2
    return [_hadamard(left), _hadamard(right), _orthogonal(size >> power, generator)]


def _orthogonal_factors(size: int, generator: torch.Generator) -> list[Tensor]:
    """Return two random factors of the two most equal divisors."""
    left = max(part for part in range(1, math.isqrt(size) + 1) if size % part == 0)
    return [_orthogonal(left, generator), _orthogonal(size // left, generator)]


def _full_factor(size: int, generator: torch.Generator) -> list[Tensor]:
    """Return one random factor."""
    return [_orthogonal(size, generator)]


ROTATIONS = {
    "hadamard": _hadamard_factors,
    "orthogonal": _orthogonal_factors,
    "full": _full_factor,
}


def _hadamard(size: int) -> Tensor:
    """Return the orthonormal Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix, uniform over all of them."""
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    found, upper = torch.linalg.qr(normal)
    signed: Tensor = found * upper.diagonal().sign()
    return signed


@dataclass(frozen=True, slots=True)
class RoundInput(Step):
    """Symmetric rounding of the input, ``x̂ = s · clamp(round(x / s), ±(2^(b−1) − 1))``.

    ``s = absmax / (2^(b−1) − 1)``: with granularity ``token`` of each token as it comes, with
    ``tensor`` of the calibration text, stored as ``scale`` (1,) float32.

    Args:
        bits: Bits of a rounded input.
        granularity: ``token`` or ``tensor``.
    """

    name: ClassVar[str] = "round-input"

    bits: int
    granularity: str = "token"

    def __post_init__(self) -> None:
        """Check bits and granularity.

        Raises:
            PlanError: If there is no such rounding.
        """
        if self.bits < 2 or self.granularity not in GRANULARITIES:
            raise PlanError(
                f"an input is rounded to at least 2 bits by {' or '.join(GRANULARITIES)}, got "
                f"{self.bits} bits by {self.granularity!r}."
            )

    @property
    def largest(self) -> int:
        """The largest code, ``2^(bits−1) − 1``."""
        return (1 << (self.bits - 1)) - 1

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``scale`` for granularity ``tensor``."""
        return {} if self.granularity == "token" else {"scale": TensorInfo((1,), "float32")}

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the rounded input, with the gradient of the identity."""
        codes, scale = self.codes(inputs.detach(), tensors)
        return straight_through(inputs, (codes * scale).to(inputs.dtype))

    def codes(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return codes (…, in) in ``±(2^(b−1) − 1)`` and s, (…, 1) or (1,), all fp32."""
        values = inputs.float()
        if self.granularity == "token":
            absmax = values.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_ABSMAX)
            scale = absmax / self.largest
        else:
            scale = tensors["scale"]
        return torch.round(values / scale).clamp_(-self.largest, self.largest), scale
