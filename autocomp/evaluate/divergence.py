"""Exact KL to the base model without keeping its logits.

With base probabilities ``p`` and the candidate's logits ``z = Ŵ h``, the KL of a token is

``KL(p ‖ q) = Σ p log p − Σ p z + logsumexp(z) = C − h·E + logsumexp(Ŵ h)``,

where ``C = Σ p log p`` and ``E = Ŵᵀ p``. Both are numbers of the base: ``hidden + 1`` a token
instead of a vocabulary. A candidate with another head needs its own ``E``, kept by the head's spec
token. The bias of a head is one more column of ``W``, for which ``h`` is 1.

Nothing of the size (tokens, vocabulary) exists beyond one chunk, and everything here is fp32; the
products that make logits read bf16 values where body and head are bf16, so they lose nothing to
bf16 inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from autocomp.models.attention import decode_attention
from autocomp.models.device import bf16_products

CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Means over the predicted tokens of each window.

    Args:
        kl_nats: KL to the base, nats a token, one a window.
        nll_nats: Cross entropy of the text, nats a token, one a window.
        tokens: Predicted tokens in all windows.
    """

    kl_nats: tuple[float, ...]
    nll_nats: tuple[float, ...]
    tokens: int


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the matrix that makes logits, fp32, packed modules decoded.

    (vocab, hidden); with a bias (vocab, hidden + 1).
    """
    head = model.get_output_embeddings()
    weight: Tensor = head.weight.detach().float()
    return weight if head.bias is None else torch.column_stack([weight, head.bias.float()])


def head_inputs(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return the head's inputs, (windows, length, hidden), after the final norm.

    Compressed key/value caches count as they would in decoding. A head with a bias gets one
    channel more, which is 1.
    """
    device = next(model.parameters()).device
    with decode_attention(model):
        output = model.base_model(input_ids=windows.to(device), use_cache=False)
    hidden: Tensor = output.last_hidden_state
    biased = model.get_output_embeddings().bias is not None
    return functional.pad(hidden, (0, 1), value=1.0) if biased else hidden


@torch.no_grad()
def final_hidden(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return :func:`head_inputs` without a graph."""
    return head_inputs(model, windows)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, count, CHUNK_TOKENS)]


class BaseReference:
    """The base model's distributions on some windows, as hidden states and entropies.

    Args:
        model: The dense base model in its compute dtype.
        windows: (n, length) token ids.
        batch_size: Windows a forward pass.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, batch_size: int = 4) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self._weight = head_weight(model).clone()
        hidden: list[Tensor] = []
        for start in range(0, len(windows), batch_size):
            hidden.append(final_hidden(model, windows[start : start + batch_size]))
        self._dtype = hidden[0].dtype
        self._hidden = torch.cat(hidden)[:, :-1].float()
        self._entropy: dict[int, Tensor] = {}
        self._nll: dict[int, float] = {}
        self._expected: dict[tuple[str, int], Tensor] = {}

    def _probabilities(self, window: int, piece: slice) -> tuple[Tensor, Tensor]:
        with bf16_products(self._dtype):
            logits = self._hidden[window, piece] @ self._weight.T
        log_p = torch.log_softmax(logits, dim=-1)
        return log_p.exp(), log_p

    def nll_nats(self) -> list[float]:
        """Return the base model's cross entropy of each window, nats a token."""
        for window in range(len(self.windows)):
            if window not in self._nll:
                self.expectation(window, self._weight, "dense")
        return [self._nll[window] for window in range(len(self.windows))]

    @torch.no_grad()
    def expectation(self, window: int, head: Tensor, head_token: str) -> tuple[Tensor, Tensor]:
        """Return ``C`` (tokens,) and ``E`` (tokens, hidden) of a window for a candidate's head."""
        key = (head_token, window)
        if key not in self._expected:
            entropy, expected, nll = [], [], []
            labels = self.windows[window, 1:, None].to(self._hidden.device)
            for piece in _chunks(self._hidden.shape[1]):
                p, log_p = self._probabilities(window, piece)
                entropy.append((p * log_p).sum(dim=-1))
                expected.append(p @ head)
                nll.append(-log_p.gather(1, labels[piece]))
            self._entropy[window] = torch.cat(entropy)
            self._nll[window] = torch.cat(nll).double().mean().item()
            self._expected[key] = torch.cat(expected)
        return self._entropy[window], self._expected[key]


class DivergenceMeter:
    """Measures candidates against a :class:`BaseReference`, a few windows at a time.

    Args:
        reference: The base on the same windows.
    """

    def __init__(self, reference: BaseReference) -> None:
        self.reference = reference

    @torch.no_grad()
    def measure(
        self,
        model: PreTrainedModel,
        windows: Sequence[int],
        *,
        head_token: str,
        advance: Callable[[int], None] | None = None,
    ) -> WindowScores:
        """Measure some windows of the reference.

        Args:
            model: The assembled candidate.
            windows: Indices of windows.
            head_token: Spec token of the candidate's head; equal tokens must mean equal weights.
            advance: Told how many tokens were read.

        Returns:
            KL and cross entropy, a window each.
        """
        head = head_weight(model)
        ids = self.reference.windows
        kl: list[float] = []
        nll: list[float] = []
        for start in range(0, len(windows), self.reference.batch_size):
            chosen = list(windows[start : start + self.reference.batch_size])
            hidden = final_hidden(model, ids[chosen])[:, :-1]
            for row, window in enumerate(chosen):
                labels = ids[window, 1:].to(hidden.device)
                base = self.reference.expectation(window, head, head_token)
                with bf16_products(hidden.dtype):
                    values = self._window(hidden[row].float(), head, labels, base)
                kl.append(values[0])
                nll.append(values[1])
            if advance is not None:
                advance(ids[chosen].numel())
        return WindowScores(tuple(kl), tuple(nll), len(windows) * (ids.shape[1] - 1))

    def _window(
        self, hidden: Tensor, head: Tensor, labels: Tensor, base: tuple[Tensor, Tensor]
    ) -> tuple[float, float]:
        entropy, expected = base
        normaliser, chosen = [], []
        for piece in _chunks(len(hidden)):
            logits = hidden[piece] @ head.T
            normaliser.append(torch.logsumexp(logits, dim=-1))
            chosen.append(logits.gather(1, labels[piece, None]).squeeze(1))
        log_z = torch.cat(normaliser)
        kl = entropy - (hidden * expected).sum(dim=-1) + log_z
        return kl.double().mean().item(), (log_z - torch.cat(chosen)).double().mean().item()

    def backward(self, model: PreTrainedModel, windows: Sequence[int], head_token: str) -> float:
        """Add the gradient of the mean KL of some windows to what requires one.

        With the candidate's probabilities ``q`` it is ``∂KL/∂h = Ŵᵀ q − E``, from there on that
        of the body. The head itself gets none.

        Args:
            model: The candidate, whose body has parameters that require gradients.
            windows: Indices of windows, read in one pass.
            head_token: Spec token of the candidate's head; equal tokens must mean equal weights.

        Returns:
            The mean KL to the base, nats a token.
        """
        head = head_weight(model)
        hidden = head_inputs(model, self.reference.windows[list(windows)])[:, :-1]
        values = hidden.detach().float()
        gradient = torch.empty_like(values)
        total, count = 0.0, values.shape[0] * values.shape[1]
        for row, window in enumerate(windows):
            entropy, expected = self.reference.expectation(window, head, head_token)
            for piece in _chunks(values.shape[1]):
                inputs = values[row, piece]
                with bf16_products(hidden.dtype):
                    logits = inputs @ head.T
                    log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
                    gradient[row, piece] = logits.sub_(log_z).exp_() @ head - expected[piece]
                kl = entropy[piece] - (inputs * expected[piece]).sum(dim=-1) + log_z[:, 0]
                total += kl.double().sum().item()
        hidden.backward((gradient / count).to(hidden.dtype))
        return total / count
