"""Self-generated text: a model writes the text that it is calibrated or trained on."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope, Teacher
from autocomp.core.seeds import SeedTree
from autocomp.core.stats import Needs

SEQUENCES = 32
GREEDY_LENGTHS = (3, 4, 5)
COLDEST, HOTTEST = 0.001, 1000.0


@dataclass(frozen=True, slots=True)
class SelfGeneratedSpec:
    """How text is drawn: ``selfgen-t1`` from the model's own probabilities, colder below 1.

    Token: ``selfgen-t<temperature>``.

    Args:
        temperature: Divides the logits.
    """

    method: ClassVar[str] = "selfgen"
    slot: ClassVar[str] = "data"

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the temperature."""
        if not COLDEST <= self.temperature <= HOTTEST:
            raise PlanError(
                f"{self.method}: the temperature must lie in [{COLDEST}, {HOTTEST}], got "
                f"{self.temperature}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        return f"{self.method}-t{self.temperature!r}".removesuffix(".0")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token.

        Raises:
            PlanError: If the text is no token of this method.
        """
        found = re.fullmatch(rf"{cls.method}-t(\d+(?:\.\d+)?)", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-t<temperature>, such as "
                f"{cls.method}-t1."
            )
        return cls(float(found[1]))


class SelfGenerated:
    """Text that a model writes from every token of its vocabulary, without any other data.

    Sequence ``i = V p + k`` starts from ``x_0 = π(k)``, with ``π`` a seeded permutation of the V
    tokens that are not special. It goes on with the most probable token up to a length of
    ``3 + (k + p) mod 3``, and from there with ``x_t ~ softmax(z_t / T)``. So every start meets
    every greedy length once in 3 V sequences.

    Reference: Liu et al. 2023, https://arxiv.org/abs/2305.17888
    """

    scope: ClassVar[Scope] = "data"
    spec: ClassVar[type[SelfGeneratedSpec]] = SelfGeneratedSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "text that the model writes itself, from tokens of its vocabulary"
    reference: ClassVar[str] = "https://arxiv.org/abs/2305.17888"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def call(self, spec: SelfGeneratedSpec, teacher: Teacher, index: int, seed: int) -> Tensor:
        """Return sequences ``32 index`` to ``32 index + 31``, (32, length) int64.

        Args:
            spec: The temperature.
            teacher: The model that is to be compressed.
            index: Number of the call, from 0.
            seed: Seed of the order of the first tokens and of the draws.
        """
        seeds = SeedTree(seed).child(self.spec.method)
        size = len(teacher.vocabulary)
        order = torch.randperm(size, generator=Generator().manual_seed(seeds.child("starts").seed))
        number = index * SEQUENCES + torch.arange(SEQUENCES)
        place, turn = number % size, number // size
        greedy = torch.tensor(GREEDY_LENGTHS)[(place + turn) % len(GREEDY_LENGTHS)]
        starts = teacher.vocabulary[order[place]]
        return teacher.sample(starts, greedy, spec.temperature, seeds.child("call", index).seed)
