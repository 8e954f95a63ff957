"""KL, cross entropy and agreement of candidates, exact and without whole logits.

The identity is explained in :mod:`autocomp.evaluate.reference`. Nothing of the size (tokens,
vocabulary) exists beyond one chunk, and everything here is fp32; the products that make logits
read bf16 values where body and head are bf16, so they lose nothing to bf16 inputs.

A body in bf16 diverges from its own base in fp32 by a few 1e-4 nats, whatever the plan. This floor
is measured once, on the base itself, and subtracted from every KL, which so estimates what the
plan costs in exact arithmetic; near 0 an estimate may be negative.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autocomp.evaluate.body import Body
from autocomp.evaluate.head import chunks, head_inputs, head_weight, normalise
from autocomp.evaluate.reference import BaseWindow, Reference
from autocomp.models.device import bf16_products

FLOOR_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Means over the predicted tokens of each window.

    Args:
        kl_nats: KL to the base less the floor, nats a token, one a window.
        nll_nats: Cross entropy of the text, nats a token, one a window.
        top1: Share of tokens whose most probable successor is the base's, one a window.
        tokens: Predicted tokens in all windows.
    """

    kl_nats: tuple[float, ...]
    nll_nats: tuple[float, ...]
    top1: tuple[float, ...]
    tokens: int


class DivergenceMeter:
    """Measures candidates against a reference, a few windows at a time.

    Args:
        reference: The base on some windows.
        base: The base in the candidates' arithmetic, to measure the floor with.
        floor_nats: The floor where there is no ``base``, nats a token.
        keep_bytes: Limit of the hidden states kept for plans with the same first blocks, bytes.
    """

    def __init__(
        self,
        reference: Reference,
        base: PreTrainedModel | None = None,
        floor_nats: float = 0.0,
        keep_bytes: int = 0,
    ) -> None:
        self.reference = reference
        self.floor_nats = 0.0 if base is not None else floor_nats
        self.body = Body(reference.windows, batch_size=reference.batch_size, keep_bytes=keep_bytes)
        if base is not None:
            count = max(1, FLOOR_TOKENS // reference.windows.shape[1])
            some = range(min(count, len(reference.windows)))
            own = self.measure(base, some, head_token=f"base in {base.dtype}")
            self.floor_nats = math.fsum(own.kl_nats) / len(some)

    @torch.no_grad()
    def measure(
        self,
        model: PreTrainedModel,
        windows: Sequence[int],
        *,
        head_token: str,
        advance: Callable[[int], None] | None = None,
        state: Sequence[str] | None = None,
    ) -> WindowScores:
        """Measure some windows of the reference.

        Args:
            model: The assembled candidate.
            windows: Indices of windows.
            head_token: Spec token of the candidate's head; equal tokens must mean equal weights.
            advance: Told how many tokens were read.
            state: What the blocks compute, of :func:`autocomp.evaluate.body.plan_states`, so that
                blocks that an earlier call ran need not run again.

        Returns:
            KL, cross entropy and agreement, a window each.
        """
        head = head_weight(model)
        ids = self.reference.windows
        found: list[tuple[float, float, float]] = []
        for chosen, states in self.body.hidden(model, windows, state):
            hidden = states[:, :-1]
            for row, window in enumerate(chosen):
                labels = ids[window, 1:].to(hidden.device)
                base = self.reference.window(window)
                expected = self.reference.expectation(window, head, head_token, hidden.dtype)
                with bf16_products(hidden.dtype):
                    found.append(_score(hidden[row].float(), head, labels, base, expected))
            if advance is not None:
                advance(ids[chosen].numel())
        kl, nll, top1 = zip(*found, strict=True) if found else ((), (), ())
        return WindowScores(
            tuple(value - self.floor_nats for value in kl),
            nll,
            top1,
            len(windows) * (ids.shape[1] - 1),
        )

    def backward(self, model: PreTrainedModel, windows: Sequence[int], head_token: str) -> float:
        """Add the gradient of the mean KL of some windows to what requires one.

        With the candidate's probabilities ``q`` it is ``∂KL/∂h = Ŵᵀ q − E``, from there on that
        of the body. The head itself gets none.

        Args:
            model: The candidate, whose body has parameters that require gradients.
            windows: Indices of windows, read in one pass.
            head_token: Spec token of the candidate's head; equal tokens must mean equal weights.

        Returns:
            The mean KL to the base, nats a token, the floor included.
        """
        head = head_weight(model)
        hidden = head_inputs(model, self.reference.windows[list(windows)])[:, :-1]
        values = hidden.detach().float()
        gradient = torch.empty_like(values)
        total, count = 0.0, values.shape[0] * values.shape[1]
        for row, window in enumerate(windows):
            entropy = self.reference.window(window).entropy
            expected = self.reference.expectation(window, head, head_token, hidden.dtype)
            for piece in chunks(values.shape[1]):
                inputs = values[row, piece]
                with bf16_products(hidden.dtype):
                    logits = inputs @ head.T
                    log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
                    gradient[row, piece] = logits.sub_(log_z).exp_() @ head - expected[piece]
                kl = entropy[piece] - (inputs * expected[piece]).sum(dim=-1) + log_z[:, 0]
                total += kl.double().sum().item()
        hidden.backward((gradient / count).to(hidden.dtype))
        return total / count


def _score(
    hidden: Tensor, head: Tensor, labels: Tensor, base: BaseWindow, expected: Tensor
) -> tuple[float, float, float]:
    """Return KL, cross entropy and agreement of one window."""
    log_z, chosen, best = [], [], []
    for piece in chunks(len(hidden)):
        logits = hidden[piece] @ head.T
        chosen.append(logits.gather(1, labels[piece, None]).squeeze(1))
        normaliser, top1 = normalise(logits)
        log_z.append(normaliser)
        best.append(top1)
    total = torch.cat(log_z)
    kl = base.entropy - (hidden * expected).sum(dim=-1) + total
    agree = (torch.cat(best) == base.top1).double()
    nll = total - torch.cat(chosen)
    return kl.double().mean().item(), nll.double().mean().item(), agree.mean().item()
