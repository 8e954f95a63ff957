"""The contract of an allocation: who gives up how much, for a given total.

An allocation reads every decoder linear once, in the calibration pass, and returns for a target
the share of each that stays: of its weights under a mask, of its parameters under a factorisation.
It knows no budget and no option; :mod:`autocomp.search.allocate` finds the target that a budget
allows and the options nearest to the shares.

Its token is its name and the settings that differ from the defaults, ``owl-m7``.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from autocomp.core.errors import ConfigError
from autocomp.core.registry import ALLOCATIONS

if TYPE_CHECKING:
    from autocomp.search.scores.base import LinearSite

Floats = NDArray[np.float64]

LEAST_SHARE = 0.05
"""No site keeps less, unless the target itself is lower."""


@dataclass(frozen=True, slots=True)
class AllocatedSite:
    """A linear, or linears that share one decision, as a profile sees it.

    Args:
        name: Of the group.
        weights: How many weights it has.
        signal: What the allocation read of it; NaN where it reads nothing.
        losses: Predicted loss of keeping a share, by share, of the options at hand.
    """

    name: str
    weights: int
    signal: float = float("nan")
    losses: Mapping[float, float] = field(default_factory=dict)


class Allocation(ABC):
    """How sparsity or rank is divided among linears; a frozen dataclass of its settings.

    Class attributes: ``name`` (key in ``ALLOCATIONS``), ``slot`` (what it divides: ``mask`` or
    ``factor``), ``version`` (raise it when signals change), ``summary``, ``reference`` (URL of the
    paper), ``gradients`` (whether it reads sampled gradients) and ``letters`` (the letter of each
    setting in the token).
    """

    name: ClassVar[str]
    slot: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str]
    reference: ClassVar[str]
    gradients: ClassVar[bool] = False
    letters: ClassVar[Mapping[str, str]] = {}

    def read(self, block: "Mapping[str, LinearSite]") -> dict[str, float]:
        """Return the signal of every linear of a decoder block; empty where none is needed.

        Args:
            block: By name; weights (out, in) and statistics of the dense model.
        """
        return {}

    @abstractmethod
    def profile(self, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
        """Return the share of every site that stays, in (0, 1].

        Args:
            sites: The linears.
            target: Their mean share, weighted by the number of weights, in (0, 1].
        """

    def token(self) -> str:
        """Return the canonical token."""
        settings = (
            f"-{letter}{value:g}"
            for letter, name in self.letters.items()
            if (value := getattr(self, name)) != getattr(type(self)(), name)
        )
        return self.name + "".join(settings)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the allocation of a token; the inverse of :meth:`token`.

        Raises:
            ConfigError: If the token cannot be read, or a setting is not allowed.
        """
        settings = "".join(rf"(?:-{letter}(\d+(?:\.\d+)?))?" for letter in cls.letters)
        found = re.fullmatch(cls.name + settings, text)
        if not found:
            form = "".join(f"[-{letter}<{name}>]" for letter, name in cls.letters.items())
            raise ConfigError(f"cannot read {text!r}: expected {cls.name}{form}.")
        given: dict[str, Any] = {
            name: float(value)
            for name, value in zip(cls.letters.values(), found.groups(), strict=True)
            if value is not None
        }
        return cls(**given)


def parse_allocation(text: str) -> Allocation:
    """Return the allocation of a token.

    Raises:
        ConfigError: If there is none of that name, or the token cannot be read.
    """
    found: Allocation = ALLOCATIONS[text.partition("-")[0]].parse(text)
    return found


def centred(raw: Floats, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
    """Return shares that differ as ``raw`` does and whose weighted mean is the target.

    All are moved by one amount and kept in ``[LEAST_SHARE, 1]``; the amount is such that the mean
    is exact after that.

    Args:
        raw: (sites,), any level.
        sites: For names and weights.
        target: Mean share, in (0, 1].
    """
    weights = np.array([site.weights for site in sites], dtype=np.float64)
    least = min(LEAST_SHARE, target)

    def excess(shift: float) -> float:
        return float(np.clip(raw + shift, least, 1.0) @ weights / weights.sum() - target)

    low, high = least - raw.max(), 1.0 - raw.min()
    shift = low if excess(low) >= 0 else high if excess(high) <= 0 else brentq(excess, low, high)
    shares = np.clip(raw + shift, least, 1.0)
    return {site.name: float(share) for site, share in zip(sites, shares, strict=True)}
