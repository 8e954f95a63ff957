"""The second stream of a finish: what linears would read if nothing in front were compressed.

It goes through the plan's blocks before their linears are compressed, from an exact embedding and
over exact caches; sub-blocks that the plan drops are dropped in it too, as no weight can give back
what they added.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from autocomp.calibrate.walker import BlockWalker, watch_inputs
from autocomp.core.sketch import Site
from autocomp.search.tuning import exact_caches


class DenseStream:
    """Hidden states that no rounding has touched, one block after another.

    Args:
        walker: Holds the live model with its exact embedding.
    """

    def __init__(self, walker: BlockWalker) -> None:
        self._batches = walker.first_inputs()

    def inputs(
        self, walker: BlockWalker, block: int, sites: Sequence[Site]
    ) -> Mapping[str, Sequence[Tensor]]:
        """Return what the linears of a block read and go on to the next block.

        Args:
            walker: Holds the live model, in which the linears of the block still are dense.
            block: Index of the block, one more than at the last call.
            sites: The linears of the block.

        Returns:
            By name of the input, (tokens, in) a batch; nothing for what does not run.
        """
        readers = {site.reads: walker.layout.get(site.name) for site in reversed(sites)}
        found: dict[str, list[Tensor]] = {reads: [] for reads in readers}
        with (
            exact_caches(walker.layout.blocks[block]),
            watch_inputs(readers, lambda reads, rows: found[reads].append(rows)),
        ):
            self._batches = walker.advance(block, self._batches)
        return found
