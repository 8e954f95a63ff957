"""What is kept of the base model's distributions: a few numbers a token, never its logits.

With base probabilities ``p`` and the candidate's logits ``z = Ŵ h``, the KL of a token is

``KL(p ‖ q) = Σ p log p − Σ p z + logsumexp(z) = C − h·E + logsumexp(Ŵ h)``,

where ``C = Σ p log p`` and ``E = Ŵᵀ p``: ``hidden + 1`` numbers instead of a vocabulary. While the
head is unchanged they belong to the base. A candidate with another head needs another ``E``:

* :class:`BaseReference` keeps the base's hidden states and head, and adds the exact
  ``(Ŵ − W)ᵀ p``, once a head;
* :class:`SavedReference`, a file that needs no base, keeps the k largest probabilities and the sum
  over the rest of the vocabulary, ``E_T = Σ_{v∉top} p_v w_v``. Then
  ``E ≈ E_T + Σ_{v∈top} p_v ŵ_v``, which is exact for the unchanged head; for another one the KL is
  off by at most ``m · max_v |h·(ŵ_v − w_v)|`` a token, with ``m`` the probability of the rest.

The bias of a head is one more column of ``W``, for which ``h`` is 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autocomp.core.errors import ConfigError
from autocomp.core.progress import Progress, Silent
from autocomp.evaluate.head import chunks, final_hidden, head_weight
from autocomp.formats.io import load, save
from autocomp.models.device import bf16_products, memory_bytes

TOP = 64
WIDE_SHARE = 0.4
FILE_KIND = "autocomp-reference-1"


@dataclass(frozen=True, slots=True)
class BaseWindow:
    """The base on one window.

    Args:
        entropy: ``C``, (tokens,) fp32.
        expected: ``E`` of the base's own head, (tokens, hidden) fp32.
        top1: The most probable token, (tokens,) int64.
        nll: Cross entropy of the text, nats a token.
    """

    entropy: Tensor
    expected: Tensor
    top1: Tensor
    nll: float


class Reference(Protocol):
    """What a meter compares with."""

    windows: Tensor
    batch_size: int

    def nll_nats(self) -> list[float]:
        """Return the base model's cross entropy of each window, nats a token."""

    def window(self, window: int) -> BaseWindow:
        """Return the base on a window."""

    def expectation(
        self, window: int, head: Tensor, head_token: str, dtype: torch.dtype
    ) -> Tensor:
        """Return ``E`` (tokens, hidden) of a window for a candidate's head.

        Args:
            window: Index of the window.
            head: (vocab, hidden) fp32.
            head_token: Name of the head; equal names must mean equal weights.
            dtype: Compute dtype of the candidate.
        """


class BaseReference:
    """The base model's distributions on some windows.

    Exact for whatever the candidate's head is. Best made of a model in fp32: its own rounding then
    is in no KL.

    Args:
        model: The dense base model; it is not needed afterwards.
        windows: (n, length) token ids.
        batch_size: Windows a forward pass.
        advance: Told how many tokens were read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: Tensor,
        batch_size: int = 4,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self._weight = head_weight(model).clone()
        hidden = []
        for batch in windows.split(batch_size):
            hidden.append(final_hidden(model, batch))
            if advance is not None:
                advance(batch.numel())
        self._dtype = hidden[0].dtype
        self._hidden = torch.cat(hidden)[:, :-1].float()
        self._base: dict[int, BaseWindow] = {}
        self._changed: dict[str, bool] = {}
        self._expected: dict[tuple[str, int], Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the base."""
        return self._dtype

    def nll_nats(self) -> list[float]:
        """Return the base model's cross entropy of each window, nats a token."""
        return [self.window(window).nll for window in range(len(self.windows))]

    @torch.no_grad()
    def window(self, window: int) -> BaseWindow:
        """Return the base on a window, computed at the first call."""
        if window not in self._base:
            parts = [self._piece(window, piece) for piece in chunks(self._hidden.shape[1])]
            entropy, expected, top1, nll = (torch.cat(part) for part in zip(*parts, strict=True))
            self._base[window] = BaseWindow(entropy, expected, top1, nll.double().mean().item())
        return self._base[window]

    def _piece(self, window: int, piece: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``C``, ``E``, the best token and the cross entropy of some tokens."""
        p, top1, log_z, z = self._probabilities(window, piece, self._dtype)
        expected = p @ self._weight
        # Σ p log p = h·E − logsumexp: the same sums as in the KL, so their errors cancel in it.
        entropy = (self._hidden[window, piece] * expected).sum(dim=-1) - log_z
        return entropy, expected, top1, log_z - z

    def _probabilities(
        self, window: int, piece: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``p``, its best token, ``logsumexp`` and the logit of the text."""
        with bf16_products(dtype):
            logits = self._hidden[window, piece] @ self._weight.T
        labels = self.windows[window, 1:][piece, None].to(logits.device)
        chosen = logits.gather(1, labels).squeeze(1)
        largest, top1 = logits.max(dim=-1)
        p = logits.sub_(largest[:, None]).exp_()
        total = p.sum(dim=-1)
        return p.div_(total[:, None]), top1, total.log().add_(largest), chosen

    @torch.no_grad()
    def expectation(
        self, window: int, head: Tensor, head_token: str, dtype: torch.dtype
    ) -> Tensor:
        """Return ``E + (Ŵ − W)ᵀ p`` of a window; see :class:`Reference`."""
        if head_token not in self._changed:
            self._changed[head_token] = not torch.equal(head, self._weight)
        base = self.window(window)
        if not self._changed[head_token]:
            return base.expected
        key = (head_token, window)
        if key not in self._expected:
            change = head - self._weight
            parts = []
            for piece in chunks(self._hidden.shape[1]):
                p = self._probabilities(window, piece, dtype)[0]
                with bf16_products(dtype):  # an error of this is relative to the change
                    parts.append(p @ change)
            self._expected[key] = base.expected + torch.cat(parts)
        return self._expected[key]

    @torch.no_grad()
    def save(self, path: Path, described: Mapping[str, Any]) -> None:
        """Write what measuring needs to a file, without the base: see :class:`SavedReference`.

        Args:
            path: The file.
            described: JSON values that say what the base and the text are.
        """
        tensors: dict[str, list[Tensor]] = {}
        for window in range(len(self.windows)):
            base = self.window(window)
            found = [
                self._top(window, piece, base.expected) for piece in chunks(len(base.entropy))
            ]
            rest, ids, top = (torch.cat(part) for part in zip(*found, strict=True))
            for name, tensor in {
                "entropy": base.entropy,
                "rest": rest,
                "top_ids": ids.int(),
                "top_p": top,
                "nll": torch.tensor(base.nll, dtype=torch.float64),
            }.items():
                tensors.setdefault(name, []).append(tensor.cpu())
        stacked = {name: torch.stack(values) for name, values in tensors.items()}
        metadata = {"kind": FILE_KIND, "batch_size": self.batch_size, **described}
        save(path, {"windows": self.windows, **stacked}, metadata)

    def _top(self, window: int, piece: slice, expected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``E_T``, and ids and probabilities of the likeliest tokens, for some tokens."""
        p = self._probabilities(window, piece, self._dtype)[0]
        top, ids = p.topk(min(TOP, p.shape[1]), dim=-1)
        return expected[piece] - torch.einsum("tk,tkd->td", top, self._weight[ids]), ids, top


def reference_of(
    body: PreTrainedModel,
    widen: Callable[[], PreTrainedModel],
    windows: Tensor,
    batch_size: int,
    progress: Progress | None = None,
) -> BaseReference:
    """Return the reference of a base, computed in fp32 where the device holds it.

    Args:
        body: The base in the candidates' dtype, used where that is fp32 or fp32 does not fit.
        widen: Loads the base in fp32.
        windows: (n, length) token ids.
        batch_size: Windows a forward pass.
        progress: Told the tokens read.
    """
    wide_bytes = sum(p.numel() for p in body.parameters()) * torch.float32.itemsize
    fits = wide_bytes <= WIDE_SHARE * memory_bytes(body.device)
    if body.dtype != torch.float32 and fits:
        body = widen()
    shown = progress or Silent()
    shown.start(f"base in {str(body.dtype).removeprefix('torch.')}", windows.numel(), "token")
    found = BaseReference(body, windows, batch_size, shown.advance)
    shown.finish()
    return found


class SavedReference:
    """The base model's distributions from a file; top-k and the rest of the vocabulary.

    Args:
        path: Written by :meth:`BaseReference.save`.
        device: Where candidates run.

    Raises:
        ConfigError: If it is no such file.
        StoreError: If it cannot be read.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        tensors, metadata = load(path)
        if metadata.get("kind") != FILE_KIND:
            raise ConfigError(
                f"{path} is not a saved reference: write one with autocomp eval MODEL "
                "--save-reference FILE."
            )
        self.described: dict[str, Any] = metadata
        self.batch_size: int = metadata["batch_size"]
        self.windows = tensors.pop("windows")
        self._kept = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._head: tuple[str, Tensor] | None = None

    @property
    def rest_probability(self) -> float:
        """Mean probability ``m`` outside the kept tokens: the factor of the error's bound."""
        return 1.0 - self._kept["top_p"].double().sum(dim=-1).mean().item()

    def nll_nats(self) -> list[float]:
        """Return the base model's cross entropy of each window, nats a token."""
        found: list[float] = self._kept["nll"].tolist()
        return found

    def window(self, window: int) -> BaseWindow:
        """Return the base on a window, whose ``expected`` lacks the kept tokens' part."""
        kept = self._kept
        return BaseWindow(
            kept["entropy"][window],
            kept["rest"][window],
            kept["top_ids"][window, :, 0].long(),
            kept["nll"][window].item(),
        )

    @torch.no_grad()
    def expectation(
        self, window: int, head: Tensor, head_token: str, dtype: torch.dtype
    ) -> Tensor:
        """Return ``E_T + Σ_{top} p ŵ`` of a window; see :class:`Reference`."""
        rest, ids, top = (self._kept[name][window] for name in ("rest", "top_ids", "top_p"))
        parts = [
            rest[piece] + torch.einsum("tk,tkd->td", top[piece], head[ids[piece].long()])
            for piece in chunks(len(rest))
        ]
        return torch.cat(parts)


def is_saved_reference(path: str) -> bool:
    """Whether a path names a file for :class:`SavedReference` rather than a model."""
    return path.endswith(".safetensors") and Path(path).is_file()
