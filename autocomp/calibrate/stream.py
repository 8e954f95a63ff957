"""The streamed calibration pass: every block's statistics, one block in memory at a time.

Forward once, keeping each block's input (on disk when large); then the blocks in reverse:
recompute, backpropagate the saved output gradient, hand ``H``, ``G`` and samples of the block to
the caller, forget them. The loss is the cross entropy with labels *sampled from the model*, summed
over tokens, so ``G`` is a Fisher matrix and ``½ tr(Dᵀ G D H)`` predicts the KL of replacing ``W``
by ``W + D``.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from autocomp.calibrate.caches import cache_scores
from autocomp.calibrate.collect import Collect
from autocomp.calibrate.sinks import SinkStatistics, sink_masks
from autocomp.calibrate.statistics import GradientPass, block_sites, input_statistics
from autocomp.calibrate.walker import Batch, BlockWalker
from autocomp.core.errors import AutocompError
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import SiteKind, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.io import load, save
from autocomp.models.device import bf16_products
from autocomp.models.sampling import invert_cumulative
from autocomp.models.weights import embedding_scale

HEAD_CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class BlockStatistics:
    """What one block's pass found.

    Args:
        block: Index of the block.
        stats: Statistics of each linear site, ``fisher`` and what was asked for included.
        drop: ``½ E[(gᵀ y)²]`` of each sub-block, nats a token, or another mean over tokens.
        caches: By cache site, by spec token, ``½ E[(gᵀ Δy)²]``, or another mean over tokens.
        sinks: Statistics of each linear site with the sinks apart, where they were asked for.
    """

    block: int
    stats: dict[str, Stats]
    drop: dict[str, float]
    caches: dict[str, dict[str, float]]
    sinks: dict[str, SinkStatistics]


@dataclass(frozen=True, slots=True)
class EndStatistics:
    """What concerns the embedding and the head.

    Args:
        hidden: (n, hidden) inputs of the head on a sample of tokens, fp32.
        embedding_fisher: (hidden, hidden), ``G_e`` at a row of the embedding's table, fp32.
        head_hessian: (hidden, hidden), ``H_h = E[h hᵀ]`` of the head's inputs, fp32.
        frequency: (vocab,) share of each token in the text, fp32.
        head_bias: (vocab,) fp32 bias of the logits, or ``None``.
        tokens: (n,) int64, some tokens of the text, where gradients were asked for.
        token_gradient: (n, hidden) gradients at their rows of the embedding's table, fp32.
    """

    hidden: Tensor
    embedding_fisher: Tensor
    head_hessian: Tensor
    frequency: Tensor
    head_bias: Tensor | None = None
    tokens: Tensor | None = None
    token_gradient: Tensor | None = None

    def stats(self, kind: SiteKind, *, tied: bool, digest: str) -> Stats:
        """Return the quadratic cost of a row's change as the Hessian that solvers read.

        Changing row ``v`` by ``d`` costs ``½ f_v dᵀ G_e d`` through the embedding and about
        ``½ p_v dᵀ H_h d`` through the head, with ``p_v`` the mean probability of the token. A
        calibrated model has ``p_v ≈ f_v``, so a tied matrix sees ``G_e + H_h``.

        Args:
            kind: ``embedding`` or ``head``.
            tied: Whether the embedding is the head too.
            digest: Identifies model, text and seed.
        """
        moment = torch.zeros_like(self.head_hessian)
        if kind == "embedding":
            moment = moment + self.embedding_fisher
        if kind == "head" or tied:
            moment = moment + self.head_hessian
        return Stats(hessian=moment, norms=moment.diagonal().clamp_min(0).sqrt(), digest=digest)

    def save(self, path: Path) -> None:
        """Write the statistics to a safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        save(path, {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None})

    @classmethod
    def load(cls, path: Path) -> "EndStatistics | None":
        """Return what a file holds; ``None`` when it is absent or damaged."""
        try:
            return cls(**load(path)[0])
        except (AutocompError, OSError, TypeError):
            return None


class InputSpill:
    """Keeps the inputs of all blocks, in memory up to a limit and on disk beyond it."""

    def __init__(self, memory_limit_bytes: float = 4e9) -> None:
        self._limit = memory_limit_bytes
        self._kept: dict[int, list[Tensor] | Path] = {}
        self._used = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, block: int, batches: list[Batch]) -> None:
        """Keep the hidden states of a block's inputs."""
        hidden = [batch.hidden for batch in batches]
        size = sum(tensor.nbytes for tensor in hidden)
        if self._used + size <= self._limit:
            self._kept[block] = hidden
            self._used += size
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="autocomp-inputs-")
        path = Path(self._folder.name) / f"{block}.safetensors"
        save(path, {str(i): tensor.cpu() for i, tensor in enumerate(hidden)})
        self._kept[block] = path

    def take(self, block: int, like: list[Batch]) -> list[Batch]:
        """Return a block's inputs and forget them."""
        kept = self._kept.pop(block)
        if isinstance(kept, Path):
            tensors, _ = load(kept)
            device = like[0].hidden.device
            kept_hidden = [tensors[str(i)].to(device) for i in range(len(tensors))]
            kept.unlink()
        else:
            kept_hidden = kept
        return [batch.with_hidden(hidden) for batch, hidden in zip(like, kept_hidden, strict=True)]


def draw_labels(share: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one label a row by inverting the cumulative distribution.

    Args:
        share: (rows, labels), probabilities.
        generator: On the CPU, so that every device draws alike.

    Returns:
        (rows, 1) int64.
    """
    return invert_cumulative(share, torch.rand(len(share), 1, generator=generator))


class CalibrationStream:
    """Runs the pass described in the module docstring.

    Args:
        walker: Holds the dense model in its compute dtype and the calibration windows.
        sketch: The model's sketch.
        seed: Draws the labels.
        digest: Identifies model, text and plan.
        sample_tokens: Rows of inputs and gradients to keep a site.
        caches: Options of cache sites, by name, to be scored on about so many tokens.
        collect: What is kept for a score beside H, G and input samples.
    """

    def __init__(
        self,
        walker: BlockWalker,
        sketch: Sketch,
        seed: SeedTree,
        digest: str,
        sample_tokens: int,
        caches: Mapping[str, Sequence[LayerSpec]] | None = None,
        collect: Collect | None = None,
    ) -> None:
        self.walker = walker
        self.sketch = sketch
        self.digest = digest
        self.sample_tokens = sample_tokens
        self._seed = seed
        bias = walker.layout.head_bias()
        self._head_bias = None if bias is None else bias.float()
        self._caches = caches or {}
        self._collect = collect or Collect()
        self._norms: list[list[Tensor]] = []
        self.end: EndStatistics | None = None

    def _loss_gradient(self, batches: list[Batch]) -> list[Tensor]:
        """Return the loss gradient at the last block's output; keep what the head's inputs say."""
        layout = self.walker.layout
        weight = layout.head_weight().float()
        generator = torch.Generator().manual_seed(self._seed.child("labels").seed)
        gradients, sample, wanted = [], [], self.sample_tokens
        moment, tokens = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device), 0
        for batch in batches:
            hidden = batch.hidden.detach().requires_grad_(True)
            with torch.enable_grad():
                normed = layout.final_norm(hidden)
            rows = normed.detach().float().flatten(0, -2)
            above = torch.empty_like(rows)
            with bf16_products(batch.hidden.dtype):
                moment.addmm_(rows.T, rows)
            tokens += len(rows)
            for start in range(0, len(rows), HEAD_CHUNK_TOKENS):
                piece = slice(start, start + HEAD_CHUNK_TOKENS)
                with bf16_products(batch.hidden.dtype):
                    logits = functional.linear(rows[piece], weight, self._head_bias)
                    share = torch.softmax(logits, dim=-1)
                    labels = draw_labels(share, generator)
                    share.scatter_add_(1, labels, share.new_full(labels.shape, -1.0))
                    torch.mm(share, weight, out=above[piece])
            above_shaped = above.view_as(normed).to(normed.dtype)
            gradients.append(torch.autograd.grad(normed, hidden, above_shaped)[0])
            if wanted > 0:
                sample.append(rows[:wanted].clone())
                wanted -= len(sample[-1])
        self._head_sample, self._head_hessian = torch.cat(sample), moment / tokens
        return gradients

    def forward(self) -> Iterator[int]:
        """First half: yield each block index after its inputs are kept."""
        self._spill = InputSpill()
        self._norms = []
        batches: list[Batch] = []
        for block, batches in self.walker.walk():
            self._spill.put(block, batches)
            self._measure(batches)
            self._like = [batch.with_hidden(batch.hidden[:0]) for batch in batches]
            yield block
        last = self.walker.advance(len(self.walker.layout.blocks) - 1, batches)
        self._measure(last)
        self._gradients = self._loss_gradient(last)

    def _measure(self, batches: list[Batch]) -> None:
        """Keep the norms of the hidden states at a boundary, where sinks are asked for."""
        if self._collect.sinks:
            self._norms.append([batch.hidden.float().norm(dim=-1) for batch in batches])

    def _sinks(self, block: int) -> list[Tensor] | None:
        """Return which tokens are sinks of a block, one mask a batch."""
        if not self._collect.sinks:
            return None
        return sink_masks(self._norms[block], self._norms[block + 1])

    def backward(self) -> Iterator[BlockStatistics]:
        """Second half: yield the statistics of each block, last block first."""
        for block in reversed(range(len(self.walker.layout.blocks))):
            batches = self._spill.take(block, self._like)
            inputs = input_statistics(
                self.walker,
                batches,
                block_sites(self.sketch, block),
                digest=self.digest,
                sample_tokens=self.sample_tokens,
            )
            sinks = self._sinks(block)
            gradient = GradientPass(
                self.walker, self.sketch, block, self.sample_tokens, self._collect, sinks
            )
            self._gradients = gradient.run(batches, self._gradients)
            stats = {}
            for name, found in inputs.items():
                fisher, rows = gradient.fisher(name)
                stats[name] = replace(
                    found,
                    fisher=fisher,
                    sample_gradient=rows,
                    sensitivity=gradient.sensitivity(name),
                )
            caches = {
                site.name: cache_scores(
                    self.walker,
                    block,
                    self.sketch.owner[site.name],
                    batches,
                    gradient.above(self.sketch.owner[site.name]),
                    self._caches[site.name],
                    self._collect.per_token,
                    sinks,
                )
                for site in self.sketch.caches()
                if site.block == block and site.name in self._caches
            }
            yield BlockStatistics(block, stats, gradient.drop_scores(), caches, gradient.sinks())
        self._finish()

    def _finish(self) -> None:
        rows = torch.cat([gradient.float().flatten(0, -2) for gradient in self._gradients])
        rows *= embedding_scale(self.walker.model.get_input_embeddings())
        ids = self.walker.windows.flatten()
        counts = torch.bincount(ids, minlength=self.sketch.vocab_size)
        kept = self.sample_tokens if self._collect.gradients else None
        self.end = EndStatistics(
            hidden=self._head_sample,
            embedding_fisher=rows.T @ rows / len(rows),
            head_hessian=self._head_hessian,
            frequency=counts.float() / counts.sum(),
            head_bias=self._head_bias,
            tokens=None if kept is None else ids[:kept].to(rows.device),
            token_gradient=None if kept is None else rows[:kept].clone(),
        )
