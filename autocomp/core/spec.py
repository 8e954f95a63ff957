"""What is done to one site: method specs, their tokens, and the slots they fill.

A *method spec* is a small frozen dataclass owned by its method. A *layer spec* has one slot for
each kind of change; empty slots mean "leave as it is". Tokens are canonical: two specs are equal
exactly when their tokens are.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from autocomp.core.errors import PlanError
from autocomp.core.registry import METHODS

SLOTS = (
    "structure", "input", "factor", "mask", "refinement", "quantizer", "residual", "activation",
    "cache",
)  # fmt: skip
NATIVE_ONLY = frozenset({"activation", "cache"})
"""Slots that change what is computed, not a weight: no dense checkpoint can express them."""

BITS = (2, 3, 4, 5, 6, 8)


@runtime_checkable
class Spec(Protocol):
    """What one method does to one site; a frozen, hashable dataclass."""

    method: ClassVar[str]
    slot: ClassVar[str]

    def token(self) -> str:
        """Return the canonical string, such as ``gptq-w4g64``."""
        ...

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token; the inverse of :meth:`token`."""
        ...


@dataclass(frozen=True, slots=True)
class UniformSpec:
    """A uniform integer grid, ``w ≈ scale · (code − zero)``.

    Token: ``<method>-w<bits>[g<group>][-sym][-mse|-clip]``.

    Args:
        bits: Bits a code, one of 2, 3, 4, 5, 6, 8.
        group_size: Consecutive inputs of one row that share a scale; ``None`` is the whole row.
        symmetric: No zero point is stored.
        mse: Shrink each group's range to the clip with the least error before rounding.
        clip: The same by the error of the layer's output; not together with ``mse``.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "quantizer"

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    mse: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bits not in BITS:
            raise PlanError(f"{self.method}: bits must be one of {BITS}, got {self.bits}.")
        if self.group_size is not None and self.group_size < 1:
            raise PlanError(f"{self.method}: group size must be positive, got {self.group_size}.")
        if self.mse and self.clip:
            raise PlanError(f"{self.method}: a grid is clipped by mse or by clip, not by both.")

    def token(self) -> str:
        """Return the canonical token."""
        group = "" if self.group_size is None else f"g{self.group_size}"
        flags = (("-sym", self.symmetric), ("-mse", self.mse), ("-clip", self.clip))
        chosen = "".join(text for text, flag in flags if flag)
        return f"{self.method}-w{self.bits}{group}{chosen}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}-w(\d+)(?:g(\d+))?(-sym)?(-mse)?(-clip)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-w<bits>[g<group>][-sym][-mse|-clip],"
                f" such as {cls.method}-w4g64."
            )
        bits, group, *flags = found.groups()
        return cls(int(bits), int(group) if group else None, *map(bool, flags))


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """Which share of the weights stays: unstructured, or N kept of every M consecutive inputs.

    Token: ``<method>-s<percent>`` (share removed) or ``<method>-<keep>:<m>``.

    Args:
        sparsity: Share removed, in (0, 1); ``None`` for N:M.
        keep: Weights kept of every ``m``.
        m: Pattern length.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "mask"

    sparsity: float | None = None
    keep: int | None = None
    m: int | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of the two forms is given."""
        if (self.sparsity is None) == (self.keep is None or self.m is None):
            raise PlanError(f"{self.method}: give either a sparsity or keep:m.")
        if self.sparsity is not None and not 0.0 < self.sparsity < 1.0:
            raise PlanError(f"{self.method}: sparsity must lie in (0, 1), got {self.sparsity}.")
        if self.keep is not None and self.m is not None and not 0 < self.keep <= self.m:
            raise PlanError(f"{self.method}: keep must lie in 1..m, got {self.keep}:{self.m}.")

    def token(self) -> str:
        """Return the canonical token."""
        if self.sparsity is None:
            return f"{self.method}-{self.keep}:{self.m}"
        return f"{self.method}-s{100 * self.sparsity:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}-(?:s([\d.]+)|(\d+):(\d+))", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-s<percent removed> or "
                f"{cls.method}-<keep>:<m>, such as {cls.method}-s50 or {cls.method}-2:4."
            )
        percent, keep, m = found.groups()
        if percent is not None:
            return cls(sparsity=float(percent) / 100)
        return cls(keep=int(keep), m=int(m))


@dataclass(frozen=True, slots=True)
class FactorSpec:
    """A rank-k factorisation ``W ≈ A B``, by rank or by the share of parameters kept.

    Token: ``<method>-r<rank>`` or ``<method>-p<percent of parameters kept>``.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "factor"

    rank: int | None = None
    keep_percent: float | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of the two forms is given."""
        if (self.rank is None) == (self.keep_percent is None):
            raise PlanError(f"{self.method}: give either a rank or a percentage of parameters.")
        if self.rank is not None and self.rank < 1:
            raise PlanError(f"{self.method}: rank must be at least 1, got {self.rank}.")
        if self.keep_percent is not None and not 0 < self.keep_percent <= 100:
            raise PlanError(f"{self.method}: percentage must lie in (0, 100].")

    def rank_for(self, shape: tuple[int, int]) -> int:
        """Return the rank for a (out, in) weight: a multiple of 8 where that leaves one."""
        out_features, in_features = shape
        full = min(shape)
        if self.rank is not None:
            return min(self.rank, full)
        assert self.keep_percent is not None
        rank = int(
            self.keep_percent / 100 * out_features * in_features / (out_features + in_features)
        )
        return max(1, min(full, rank // 8 * 8 if rank >= 8 else rank))

    def token(self) -> str:
        """Return the canonical token."""
        if self.rank is not None:
            return f"{self.method}-r{self.rank}"
        return f"{self.method}-p{self.keep_percent:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}-(?:r(\d+)|p([\d.]+))", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-r<rank> or "
                f"{cls.method}-p<percent of parameters>, such as {cls.method}-r128."
            )
        rank, percent = found.groups()
        return cls(rank=int(rank)) if rank else cls(keep_percent=float(percent))


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A change of the input that the weight undoes.

    Token: ``<method>[-folded]``.

    Args:
        folded: The change has moved into what produces the input, so that nothing is stored.
            A finish writes it; it is no option of a search.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "input"

    folded: bool = False

    def token(self) -> str:
        """Return the canonical token."""
        return f"{self.method}-folded" if self.folded else self.method

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}(-folded)?", text)
        if not found:
            raise PlanError(f"cannot read {text!r}: expected {cls.method}[-folded].")
        return cls(folded=bool(found[1]))


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One slot for each kind of change to a site; the token joins the filled ones with ``+``."""

    structure: Any = None
    input: Any = None
    factor: Any = None
    mask: Any = None
    refinement: Any = None
    quantizer: Any = None
    residual: Any = None
    activation: Any = None
    cache: Any = None

    def filled(self) -> tuple[Spec, ...]:
        """Return the specs of the filled slots, in slot order."""
        return tuple(spec for slot in SLOTS if (spec := getattr(self, slot)) is not None)

    def token(self) -> str:
        """Return the canonical token; ``dense`` when every slot is empty."""
        return "+".join(spec.token() for spec in self.filled()) or "dense"

    @classmethod
    def parse(cls, text: str) -> "LayerSpec":
        """Return the layer spec of a token.

        Raises:
            ConfigError: If a method is unknown.
            PlanError: If a part cannot be read or is for no site, or two parts fill one slot.
        """
        if text == "dense":
            return cls()
        slots: dict[str, Spec] = {}
        for part in text.split("+"):
            spec = METHODS[part.partition("-")[0]].spec.parse(part)
            if spec.slot not in SLOTS:
                raise PlanError(
                    f"{text!r}: {part!r} changes the {spec.slot}, not one site. A site's methods "
                    f"fill these slots: {', '.join(SLOTS)}."
                )
            if spec.slot in slots:
                raise PlanError(f"{text!r}: two methods for the {spec.slot} slot.")
            slots[spec.slot] = spec
        return cls(**slots)


DENSE = LayerSpec()
