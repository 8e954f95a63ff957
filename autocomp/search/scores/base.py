"""The contract of a score, and the maths that scores share.

A score says what one option of one site would cost, alone: a number that is finite, not negative,
the larger the worse, 0 for what changes nothing, and such that numbers of different sites add up.
It has one for every kind of option. All but the measured one follow from what a streamed
calibration pass keeps of a site: the input second moment ``H``, the Fisher matrix ``G`` of the
loss gradients ``g`` at its output, and inputs and gradients of some tokens. With ``D = Ŵ − W`` an
option changes the output of a linear by ``Δ = D x``; by ``a(T x) Ŵ'ᵀ − x Wᵀ`` where it rounds the
input; a bypass changes what a sub-block adds by ``−y``, a compressed cache by ``Δy``.

Scores that predict nats are second order around the dense model, so they are too small for coarse
options; the search corrects them by what it measures (:mod:`autocomp.search.correction`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from autocomp.calibrate.collect import half_squared_product
from autocomp.calibrate.sinks import SinkStatistics
from autocomp.calibrate.stream import EndStatistics
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.models.device import bf16_products
from autocomp.search.scores.table import ScoreTable

HEAD_TOKENS = 512
CHUNK_TOKENS = 256

Lists = Mapping[str, Sequence[LayerSpec]]
Loss = Callable[[str, LayerSpec], float]
"""What the study's objective loses, on its first rung, when one site alone follows a spec."""


class ScoreNeeds(Enum):
    """What a score asks for beside H, G and input samples."""

    GRADIENTS = "gradients"
    SINKS = "sinks"
    OBJECTIVE = "objective"


@dataclass(frozen=True, slots=True)
class LinearSite:
    """A linear in the calibration pass.

    Args:
        weight: W (out, in) fp32.
        stats: With ``hessian`` (in, in), ``fisher`` (out, out), ``sample`` (n, in) and, where a
            score needs gradients, ``sample_gradient`` (n, out) of the same tokens.
        sinks: The statistics with the sinks apart, where a score needs them.
        dtype: Dtype that inputs and gradients came from: where it is bf16, products round to it.
    """

    weight: Tensor
    stats: Stats
    sinks: SinkStatistics | None = None
    dtype: torch.dtype = torch.float32

    @property
    def hessian(self) -> Tensor:
        """H (in, in)."""
        return _present(self.stats.hessian, "H")

    @property
    def fisher(self) -> Tensor:
        """G (out, out)."""
        return _present(self.stats.fisher, "G")

    @property
    def sample(self) -> Tensor:
        """Inputs x of some tokens, (n, in)."""
        return _present(self.stats.sample, "a sample of inputs")

    @property
    def norms(self) -> Tensor:
        """``sqrt(E[x²])`` a channel, (in,)."""
        return _present(self.stats.norms, "norms of the inputs")

    @property
    def gradient(self) -> Tensor:
        """Output gradients g of the same tokens, (n, out)."""
        return _present(self.stats.sample_gradient, "a sample of output gradients")

    @property
    def sampled_sinks(self) -> Tensor | None:
        """Which of those tokens are sinks, (n,) bool; ``None`` where nobody looked."""
        return None if self.sinks is None else self.sinks.sampled

    @property
    def apart(self) -> SinkStatistics:
        """The statistics with the sinks apart."""
        if self.sinks is None:
            raise ValueError("this score needs the sinks apart; calibrate with them collected.")
        return self.sinks

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return a matrix product in the arithmetic of the pass."""
        with bf16_products(self.dtype):
            return left @ right

    def output_change(self, compressed: CompressedWeight, inputs: Tensor) -> Tensor:
        """Return ``a(T x) Ŵ'ᵀ − x Wᵀ`` of inputs (n, in): (n, out)."""
        weight, prepare = compressed.operands()
        prepared = inputs if prepare is None else prepare(inputs)
        return self.product(prepared, weight.T) - self.product(inputs, self.weight.T)


def _present(tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"this score needs {what}, which the calibration pass did not keep.")
    return tensor


class Score(ABC):
    """What options cost; see the module docstring.

    Changes of the weight of a linear come stacked, (options, out, in) fp32. Unless a score says
    otherwise, its value of anything is the mean over tokens of :meth:`per_token`, on the sampled
    tokens for what happens in a linear or in the embedding.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str]
    reference: ClassVar[str]
    in_nats: ClassVar[bool]
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset()

    @abstractmethod
    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return what a changed output is worth, token by token, (n,).

        Args:
            change: Δ (n, out) fp32.
            gradient: g (n, out) fp32.
            sinks: Which of the tokens are sinks, (n,) bool, where the score needs them.
        """

    def pairs(self, site: LinearSite, changes: Tensor) -> Tensor:
        """Return ``K[o, p] = ½ tr(D_oᵀ G D_p H)``, (options, options) fp64, nats."""
        return kronecker_form(site, changes, site.hessian, site.fisher)

    def weights(self, site: LinearSite, changes: Tensor, pairs: Tensor) -> Tensor:
        """Return the values of changes of a weight, (options,).

        Args:
            site: The linear.
            changes: (options, out, in) fp32.
            pairs: What :meth:`pairs` returned for them.
        """
        return torch.stack(
            [
                self.per_token(
                    site.product(site.sample, change.T), site.gradient, site.sampled_sinks
                ).mean(dtype=torch.float64)
                for change in changes
            ]
        )

    def rounded(self, site: LinearSite, compressed: CompressedWeight) -> float:
        """Return the value of an option that rounds the input."""
        change = site.output_change(compressed, site.sample)
        values = self.per_token(change, site.gradient, site.sampled_sinks)
        return values.mean(dtype=torch.float64).item()

    def scale(self, weights: Iterable[Tensor], drop: float) -> float:
        """Return what turns means over tokens into values of a sub-block and its cache.

        Args:
            weights: Weights of its linears, (out, in) fp32.
            drop: Mean of :meth:`per_token` over tokens when it is bypassed.
        """
        return 1.0

    def embedding(self, change: Tensor, end: EndStatistics) -> float:
        """Return the value of an embedding's change, (vocab, hidden) fp32."""
        rows = change[_present(end.tokens, "a sample of tokens")]
        gradient = _present(end.token_gradient, "their gradients at the embedding")
        return self.per_token(rows, gradient, None).mean(dtype=torch.float64).item()

    @abstractmethod
    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return the value of replacing the head's weight W by Ŵ, both (vocab, hidden) fp32."""

    def revised(self, table: ScoreTable, lists: Lists, loss: Loss) -> ScoreTable:
        """Return what replaces the numbers of the pass; asked of who needs the objective.

        Args:
            table: The numbers of the pass.
            lists: Options by site.
            loss: Measures one option of one site.
        """
        return table


class FisherScore(Score):
    """Second-order KL: nats a token.

    A weight's change costs the diagonal of :meth:`Score.pairs`, any other change of an output
    ``½ E[(gᵀ Δ)²]``; embedding and head have forms of their own (:func:`embedding_score`,
    :func:`head_score`).
    """

    in_nats: ClassVar[bool] = True

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``½ (gᵀ Δ)²``."""
        return half_squared_product(change, gradient)

    def weights(self, site: LinearSite, changes: Tensor, pairs: Tensor) -> Tensor:
        """Return the diagonal of the pairs."""
        return pairs.diagonal()

    def embedding(self, change: Tensor, end: EndStatistics) -> float:
        """Return ``½ Σ_v f_v d_vᵀ G_e d_v``."""
        return embedding_score(change, end)

    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return the exact KL on a sample of inputs."""
        return head_score(weight, compressed, end)


@torch.no_grad()
def kronecker_form(site: LinearSite, changes: Tensor, hessian: Tensor, fisher: Tensor) -> Tensor:
    """Return ``½ tr(D_oᵀ G D_p H)`` of every two changes, (options, options) fp64, symmetric.

    Args:
        site: Says in which arithmetic to multiply.
        changes: (options, out, in) fp32.
        hessian: H (in, in).
        fisher: G (out, out).
    """
    columns = []
    for change in changes:
        weighted = site.product(site.product(fisher, change), hessian)
        columns.append(torch.linalg.vecdot(changes, weighted).sum(dim=1, dtype=torch.float64))
    return _symmetric(0.5 * torch.stack(columns)) if columns else _nothing(changes)


@torch.no_grad()
def token_form(site: LinearSite, changes: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return ``½ Σ_t (g_tᵀ D_o x_t)(g_tᵀ D_p x_t)``, (options, options) fp64, symmetric.

    Args:
        site: Says in which arithmetic to multiply.
        changes: (options, out, in) fp32.
        inputs: x (n, in).
        gradients: g (n, out) of the same tokens.
    """
    rows = [(site.product(inputs, change.T) * gradients).sum(dim=1) for change in changes]
    if not rows:
        return _nothing(changes)
    products = torch.stack(rows).double()
    return _symmetric(0.5 * products @ products.T)


def _symmetric(form: Tensor) -> Tensor:
    return (form + form.T) / 2


def _nothing(changes: Tensor) -> Tensor:
    return changes.new_zeros(0, 0, dtype=torch.float64)


@torch.no_grad()
def frequency_form(change: Tensor, matrix: Tensor, end: EndStatistics) -> float:
    """Return ``Σ_v f_v d_vᵀ M d_v`` over the tokens of the text, of a (vocab, hidden) change."""
    seen = end.frequency.nonzero().squeeze(1).to(change.device)
    rows = change[seen]
    values = (rows @ matrix * rows).sum(dim=1)
    frequency = end.frequency.to(change.device)[seen]
    return (frequency * values).sum(dtype=torch.float64).item()


def embedding_score(change: Tensor, end: EndStatistics) -> float:
    """Return ``½ Σ_v f_v d_vᵀ G_e d_v`` of an embedding change (vocab, hidden), nats a token."""
    return 0.5 * frequency_form(change, end.embedding_fisher, end)


@torch.no_grad()
def head_score(weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
    """Return the exact KL of replacing the head's weight (vocab, hidden), nats a token."""
    total = 0.0
    for hidden in _head_inputs(end):
        log_p, log_q = (
            torch.log_softmax(functional.linear(hidden, matrix, end.head_bias), dim=-1)
            for matrix in (weight, compressed)
        )
        total += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64).item()
    return total / len(end.hidden[:HEAD_TOKENS])


@torch.no_grad()
def softmax_mean(
    weight: Tensor,
    compressed: Tensor,
    end: EndStatistics,
    value: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Return the mean over tokens of the sum over the vocabulary of a value.

    Args:
        weight: W (vocab, hidden) of the head.
        compressed: Ŵ.
        end: With inputs of the head.
        value: Of the probabilities (n, vocab) and of the changes of the logits (n, vocab).
    """
    total = 0.0
    for hidden in _head_inputs(end):
        share = torch.softmax(functional.linear(hidden, weight, end.head_bias), dim=-1)
        change = hidden @ (compressed - weight).T
        total += value(share, change).sum(dtype=torch.float64).item()
    return total / len(end.hidden[:HEAD_TOKENS])


def _head_inputs(end: EndStatistics) -> Iterator[Tensor]:
    """Yield inputs of the head, (n, hidden), a few at a time."""
    yield from end.hidden[:HEAD_TOKENS].split(CHUNK_TOKENS)
