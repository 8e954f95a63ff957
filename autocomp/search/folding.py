"""Input scales and orders in a finish: fitted so that they can be folded, then folded."""

from torch import Tensor

from autocomp.core.plan import Plan
from autocomp.core.sketch import Site
from autocomp.core.spec import DENSE, InputSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.layers.fold import fold
from autocomp.layers.fold_order import fold_orders
from autocomp.models.producers import producers, row_makers
from autocomp.search.workbench import Workbench


def shared_step(
    bench: Workbench, plan: Plan, site: Site, stats: Stats | None
) -> dict[str, Tensor] | None:
    """Return the input step of all linears that read what a site reads, fitted to all of them.

    Args:
        bench: The loaded base model.
        plan: What is made.
        site: A linear that is kept.
        stats: Statistics of its input, if any of its readers needs them.

    Returns:
        The step's tensors; ``None`` where the site reads alone, or the plan does not change the
        input of all its readers alike, so that every site has a step of its own.
    """
    readers = {
        other.name: plan[other.name]
        for other in bench.sketch.weights()
        if other.reads == site.reads and plan[bench.sketch.owner[other.name]] == DENSE
    }
    inputs = {spec.input for spec in readers.values()}
    if len(readers) == 1 or len(inputs) != 1 or None in inputs:
        return None
    return bench.fit_input(readers, stats)


def folded(
    bench: Workbench, plan: Plan, weights: dict[str, CompressedWeight]
) -> tuple[Plan, dict[str, CompressedWeight], dict[str, Tensor]]:
    """Return a finished plan and its weights with all scales and orders folded that can be.

    Args:
        bench: The loaded base model; the live one is restored.
        plan: The plan of the weights.
        weights: The compressed weight of every site that has tensors.

    Returns:
        The folded plan, its weights, and the other parameters that replace those of the model.
    """
    if not any(isinstance(spec.input, InputSpec) for spec in plan.layers.values()):
        return plan, weights, {}
    state = bench.loaded.model.state_dict()
    rest = {name: state[name] for name in bench.sketch.rest}
    plan, weights, rest = fold(plan, bench.sketch, producers(bench.layout), weights, rest)
    return fold_orders(plan, row_makers(bench.layout), weights, rest)
