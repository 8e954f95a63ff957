"""Input and output-gradient statistics of the sites of one block.

Both are second moments over tokens, accumulated in fp32 whatever the compute dtype:

``H = E[x xᵀ]`` of the inputs and ``G = E[g gᵀ]`` of the output gradients of the loss summed over
tokens with labels drawn from the model itself, so that ``G`` is a Fisher matrix.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autocomp.calibrate.collect import Collect
from autocomp.calibrate.sinks import Apart, SinkStatistics
from autocomp.calibrate.walker import Batch, BlockWalker, watch_inputs, watch_outputs
from autocomp.core.sketch import Site, Sketch
from autocomp.core.stats import Stats
from autocomp.models.device import bf16_products


class _Moments:
    """Running second moment of rows, and the first of them."""

    def __init__(self, sample_tokens: int) -> None:
        self.tokens = 0
        self.moment: Tensor | None = None
        self.sample: list[Tensor] = []
        self._wanted = sample_tokens

    def add(self, rows: Tensor) -> None:
        dtype, rows = rows.dtype, rows.float()
        if self.moment is None:
            self.moment = rows.new_zeros(rows.shape[1], rows.shape[1])
        with bf16_products(dtype):
            self.moment.addmm_(rows.T, rows)
        self.tokens += len(rows)
        if self._wanted > 0:
            self.sample.append(rows[: self._wanted].clone())
            self._wanted -= len(self.sample[-1])


class _InputMoments(_Moments):
    """The same, with first moments and the largest magnitude a channel."""

    absmax: Tensor | None = None
    drift: Tensor | None = None
    total: Tensor
    absolute: Tensor

    def add(self, rows: Tensor) -> None:
        super().add(rows)
        rows = rows.float()
        total, magnitude = rows.sum(dim=0), rows.abs()
        largest, absolute = magnitude.amax(dim=0), magnitude.sum(dim=0)
        if self.absmax is None:
            self.absmax, self.total, self.absolute = largest, total, absolute
        else:
            self.absmax = torch.maximum(self.absmax, largest)
            self.total += total
            self.absolute += absolute

    def compare(self, rows: Tensor, dense: Tensor) -> None:
        """Add ``Σ (x − x̂) x̂ᵀ`` of the same tokens, x̂ as :meth:`add` has them."""
        rows = rows.float()
        product = (dense.float() - rows).T @ rows
        self.drift = product if self.drift is None else self.drift + product


def block_sites(sketch: Sketch, block: int) -> list[Site]:
    """Return the linear sites of a block in model order."""
    return [site for site in sketch.sites if site.block == block and site.kind == "linear"]


@torch.no_grad()
def input_statistics(
    walker: BlockWalker,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    *,
    digest: str,
    sample_tokens: int = 0,
    dense: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, Stats]:
    """Run one block over ``batches`` and return the input statistics of some of its sites.

    Sites that read the same tensor share one ``Stats`` object, and with it the factorisations that
    methods cache there.

    Args:
        walker: Holds the model.
        batches: Inputs of the block.
        sites: Linear sites of that block.
        digest: Identifies text, model and plan; goes into the statistics.
        sample_tokens: Input rows to keep.
        dense: What the dense model reads, by name of the input, (tokens, in) a batch.

    Returns:
        Statistics by site name; ``fisher`` is empty, ``drift`` too without ``dense``.
    """
    readers = {site.reads: site for site in reversed(sites)}
    moments = {reads: _InputMoments(sample_tokens) for reads in readers}
    modules = {reads: walker.layout.get(site.name) for reads, site in readers.items()}
    beside = {reads: iter(dense[reads]) for reads in readers} if dense else {}

    def seen(reads: str, rows: Tensor) -> None:
        moments[reads].add(rows)
        if beside:
            moments[reads].compare(rows, next(beside[reads]))

    with watch_inputs(modules, seen):
        for batch in batches:
            walker.run_block(sites[0].block, batch)
    shared: dict[str, Stats] = {}
    for reads, sums in moments.items():
        if sums.moment is None:  # the module was never called: a bypassed sub-block
            continue
        hessian = sums.moment / sums.tokens
        shared[reads] = Stats(
            tokens=sums.tokens,
            hessian=hessian,
            norms=hessian.diagonal().clamp_min(0).sqrt(),
            mean=sums.total / sums.tokens,
            absmean=sums.absolute / sums.tokens,
            absmax=sums.absmax,
            sample=torch.cat(sums.sample) if sums.sample else None,
            drift=None if sums.drift is None else sums.drift / sums.tokens,
            digest=digest,
        )
    return {site.name: shared[site.reads] for site in sites if site.reads in shared}


class GradientPass:
    """One block's backward pass: ``G`` of its sites, drop scores of its sub-blocks.

    The drop score of a sub-block that adds ``y`` to the residual stream is the mean over tokens of
    what a score says of the change ``−y``; by default ``½ E[(gᵀ y)²]``, the second-order KL of
    replacing ``y`` by zero.

    Args:
        walker: Holds the model.
        sketch: Its sketch.
        block: Index of the block.
        sample_tokens: Rows to keep of what is sampled.
        collect: What is kept beside G, and the score of a change.
        sinks: Which tokens are sinks, (tokens,) bool a batch, where they are kept apart.
    """

    def __init__(
        self,
        walker: BlockWalker,
        sketch: Sketch,
        block: int,
        sample_tokens: int,
        collect: Collect | None = None,
        sinks: Sequence[Tensor] | None = None,
    ) -> None:
        self.walker = walker
        self.block = block
        self.sites = block_sites(sketch, block)
        self.subblocks = [site for site in sketch.subblocks() if site.block == block]
        self._collect = collect or Collect()
        rows = sample_tokens if self._collect.gradients else 0
        self._moments = {site.name: _Moments(rows) for site in self.sites}
        self._drop = {site.name: [0.0, 0] for site in self.subblocks}
        self._above: dict[str, list[Tensor]] = {site.name: [] for site in self.subblocks}
        self._sample_tokens = sample_tokens
        self._masks = sinks
        self._mask: Tensor | None = None
        watched = sinks is not None or self._collect.sensitivity
        self._readers = {s.reads: s for s in reversed(self.sites)} if watched else {}
        self._rows: dict[str, Tensor] = {}
        self._reads = {site.name: site.reads for site in self.sites}
        self._squares: dict[str, Tensor] = {}
        self._inputs = {reads: Apart() for reads in self._readers}
        self._outputs = {site.name: Apart() for site in self.sites}

    def _read(self, reads: str, rows: Tensor) -> None:
        if self._mask is not None:
            self._inputs[reads].add(rows, self._mask)
        if self._collect.sensitivity:
            self._rows[reads] = rows

    def _seen(self, name: str, output: Tensor, gradient: Tensor) -> None:
        if name in self._moments:
            self._moments[name].add(gradient)
            if self._mask is not None:
                self._outputs[name].add(gradient, self._mask)
            if self._collect.sensitivity:
                self._add_squares(name, gradient)
        else:
            if self._drop[name][1] < self._sample_tokens:
                self._above[name].append(gradient.float())
            values = self._collect.per_token(-output.float(), gradient.float(), self._mask)
            self._drop[name][0] += values.sum().item()
            self._drop[name][1] += len(values)

    def _add_squares(self, name: str, gradient: Tensor) -> None:
        """Add ``Σ (g_i x_j)²`` over the rows of a batch."""
        rows = self._rows[self._reads[name]]
        with bf16_products(gradient.dtype):
            squares = gradient.float().square().T @ rows.float().square()
        self._squares[name] = self._squares[name] + squares if name in self._squares else squares

    def run(self, batches: Sequence[Batch], gradients: list[Tensor]) -> list[Tensor]:
        """Backpropagate; return the gradients at the block's inputs, one a batch."""
        layout = self.walker.layout
        watched = {site.name: layout.get(site.name) for site in self.sites}
        watched |= {site.name: self.walker.outputs[site.name] for site in self.subblocks}
        readers = {reads: layout.get(site.name) for reads, site in self._readers.items()}
        before: list[Tensor] = []
        with watch_outputs(watched, self._seen), watch_inputs(readers, self._read):
            for index, (batch, gradient) in enumerate(zip(batches, gradients, strict=True)):
                self._mask = None if self._masks is None else self._masks[index]
                hidden = batch.hidden.detach().requires_grad_(True)
                with torch.enable_grad():
                    output = self.walker.run_block(self.block, batch.with_hidden(hidden))
                    (below,) = torch.autograd.grad(output, hidden, gradient)
                before.append(below.detach())
        return before

    def fisher(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Return ``G`` (out, out) of a site, and gradient rows (n, out) where they are kept."""
        sums = self._moments[name]
        assert sums.moment is not None
        return sums.moment / sums.tokens, torch.cat(sums.sample) if sums.sample else None

    def sensitivity(self, name: str) -> Tensor | None:
        """Return ``E[(g_i x_j)²]`` (out, in) of a site, where it is kept."""
        squares = self._squares.get(name)
        return None if squares is None else squares / self._moments[name].tokens

    def sinks(self) -> dict[str, SinkStatistics]:
        """Return each site's statistics with the sinks apart; empty where none were sought."""
        if self._masks is None:
            return {}
        sampled = torch.cat(list(self._masks))[: self._sample_tokens]
        read, found = self._inputs, self._outputs
        return {
            site.name: SinkStatistics(
                tokens=found[site.name].tokens,
                inputs=read[site.reads].rows,
                gradients=found[site.name].rows,
                hessian=read[site.reads].moment,
                fisher=found[site.name].moment,
                sampled=sampled,
            )
            for site in self.sites
            if found[site.name].tokens
        }

    def above(self, name: str) -> list[Tensor]:
        """Return the gradients at what a sub-block adds, (tokens, hidden) fp32.

        One tensor for each of the first batches, up to the batch that completes the sample.
        """
        return self._above[name]

    def drop_scores(self) -> dict[str, float]:
        """Return the drop score of each sub-block."""
        return {name: total / max(count, 1) for name, (total, count) in self._drop.items()}
