"""Tuning in a finish: a block's compressed weights against what the original block makes.

Two streams of hidden states go through the model: the original's, walked once before anything is
compressed, and the one that compressed blocks produce.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from autocomp.calibrate.stream import InputSpill
from autocomp.calibrate.walker import Batch, BlockWalker
from autocomp.core.finish import finish_spec
from autocomp.core.method import BlockSite, BlockView
from autocomp.core.plan import Plan
from autocomp.core.registry import METHODS
from autocomp.formats.base import CompressedWeight
from autocomp.models.attention import cache_spec, compressing, set_cache_spec
from autocomp.models.weights import as_stored
from autocomp.search.workbench import Workbench


class BlockTuner:
    """Runs the block method of a study, if it has one, on one block after another.

    Args:
        bench: The loaded base model; the live one holds the base.
        plan: What is made.
    """

    def __init__(self, bench: Workbench, plan: Plan) -> None:
        self._bench = bench
        self._plan = plan
        self._spec = finish_spec(bench.config.search.finish)
        self._targets = InputSpill()
        if self._spec is not None:
            self._keep_originals()

    def _keep_originals(self) -> None:
        """Keep what every original block makes of the calibration text."""
        walker = self._bench.walker()
        batches = walker.first_inputs()
        for block in range(self._bench.sketch.num_layers):
            batches = walker.advance(block, batches)
            self._targets.put(block, batches)

    def tune(
        self,
        walker: BlockWalker,
        block: int,
        batches: Sequence[Batch],
        weights: Mapping[str, CompressedWeight],
    ) -> dict[str, CompressedWeight]:
        """Return the weights of a block's sites that the method changed, in their layouts.

        The block attends as it is, not over its compressed cache, whose roundings stop gradients.

        Args:
            walker: Holds the live model, whose linears of the block multiply with ``weights``.
            block: Index of the block.
            batches: Its inputs, from compressed blocks in front.
            weights: The compressed weight of its linears that the plan changes and keeps.
        """
        if self._spec is None:
            return {}
        targets = self._targets.take(block, list(batches))
        if not weights:
            return {}
        module, prefix = walker.layout.blocks[block], f"{walker.layout.block_names[block]}."
        view = BlockView(
            block=module,
            sites={
                name.removeprefix(prefix): BlockSite(
                    weight=self._bench.weight(name),
                    spec=self._plan[name],
                    compressed=weight.to(self._bench.device),
                )
                for name, weight in weights.items()
            },
            inputs=[batch.hidden for batch in batches],
            targets=[batch.hidden for batch in targets],
            run=_runner(module, block, batches),
            seed=self._bench.seeds.child("finish", block).seed,
        )
        with exact_caches(module):
            found = METHODS[self._spec.method]().compress(view, self._spec)
        return {prefix + name: weight for name, weight in found.items()}


def _runner(
    module: nn.Module, block: int, batches: Sequence[Batch]
) -> Callable[[Tensor, int, Mapping[str, Tensor]], Tensor]:
    """Return the ``run`` of the view of a block."""

    def run(hidden: Tensor, batch: int, weights: Mapping[str, Tensor]) -> Tensor:
        whole = batches[batch]
        args, named = _first(whole.arguments[block], len(whole.hidden), len(hidden))
        stored = {
            f"{name}.weight": as_stored(module.get_submodule(name), weight)
            for name, weight in weights.items()
        }
        output = functional_call(module, stored, (hidden, *args), named)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    return run


def _first(value: Any, windows: int, wanted: int) -> Any:
    """Return the arguments of a batch of ``windows`` for fewer, which are the same for all."""
    if isinstance(value, Tensor):
        return value[:wanted] if value.dim() > 1 and len(value) == windows else value
    if isinstance(value, Mapping):
        return {key: _first(part, windows, wanted) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_first(part, windows, wanted) for part in value)
    return value


@contextmanager
def exact_caches(module: nn.Module) -> Iterator[None]:
    """Let the attentions of a block attend over exact keys and values in the context."""
    held = {attention: cache_spec(attention) for attention in compressing(module)}
    for attention in held:
        set_cache_spec(attention, None)
    try:
        yield
    finally:
        for attention, spec in held.items():
            set_cache_spec(attention, spec)
