"""The options of one variant of a model, with the variant itself as a parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import IntDistribution

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.variant import PARAMETER
from autocomp.search_spaces._options import OptionSpace


@dataclass(frozen=True)
class VariantSpace:
    """An option space whose plans and assignments name their variant.

    Args:
        options: The space of the variant's sketch.
        variants: All variants of the study, ``base`` first.
        variant: The one that this space is of.
    """

    options: OptionSpace
    variants: tuple[str, ...]
    variant: str

    @property
    def sketch(self) -> Sketch:
        """The variant's architecture."""
        return self.options.sketch

    @property
    def lists(self) -> Mapping[str, tuple[LayerSpec, ...]]:
        """Options by group name."""
        return self.options.lists

    @property
    def index(self) -> int:
        """The parameter's value for this variant."""
        return self.variants.index(self.variant)

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of distinct plans of this variant."""
        return self.options.log10_size

    def distributions(self) -> dict[str, IntDistribution]:
        """Return the range of every parameter, the variant's included."""
        return {
            PARAMETER: IntDistribution(0, len(self.variants) - 1),
            **self.options.distributions(),
        }

    def decode(self, params: Mapping[str, int]) -> Plan:
        """Return the plan of an assignment.

        Raises:
            PlanError: If the assignment is of another variant, or :class:`OptionSpace` refuses it.
        """
        rest = dict(params)
        index = rest.pop(PARAMETER, self.index)
        if index != self.index:
            raise PlanError(
                f"the assignment is of variant {index}, this space of {self.index} "
                f"({self.variant})."
            )
        return replace(self.options.decode(rest), variant=self.variant)

    def encode(self, plan: Plan) -> dict[str, int]:
        """Return the canonical assignment of a plan.

        Raises:
            PlanError: If the plan is of another variant, or :class:`OptionSpace` refuses it.
        """
        if plan.variant != self.variant:
            raise PlanError(
                f"the plan is of the variant {plan.variant!r}, this space of {self.variant!r}."
            )
        return {PARAMETER: self.index, **self.options.encode(plan)}
