"""Keys and values of one attention in a cache of transformers, stored as a cache method says.

Two ways with the same numbers. :class:`CompressedLayer` keeps stored tokens decoded and works with
any attention. :class:`PackedLayer` keeps them in few bits: decoding reads the codes themselves, by
the operation ``kv_attention``, so the memory is saved. What ``update`` of a cache returns is
dense, which for all tokens would take that memory again; a packed layer returns the latest ones
alone, and the attention registered here asks the layer for the rest.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from autocomp.core.errors import UnsupportedError
from autocomp.core.registry import KERNELS, METHODS
from autocomp.models.attention import PACKED, Attended

Stored = Any
"""Keys or values in few bits, of :mod:`autocomp.kernels.kv_attention`: a named tuple of tensors
(batch, kv heads, …) codes, scale and low, and of bits."""


class CompressedLayer(DynamicLayer):
    """The keys and values of one attention, (batch, kv heads, tokens, width), stored ones decoded.

    Args:
        spec: How they are stored.
        options: Of the base class.
    """

    keys: Tensor
    values: Tensor
    is_croppable = False

    def __init__(self, spec: Any, **options: Any) -> None:
        super().__init__(**options)
        self.spec = spec
        self.method = METHODS[spec.method]()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty."""
        super().lazy_initialization(key_states, value_states)
        self.stored = (0, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens, return what they attend to, then store what is due."""
        attended = super().update(key_states, value_states, *args, **kwargs)
        due = self.method.stored(self.spec, self.get_seq_length())
        self.keys = self._store(self.keys, self.method.keys, self.stored[0], due[0])
        self.values = self._store(self.values, self.method.values, self.stored[1], due[1])
        self.stored = due
        return attended

    def _store(
        self, held: Tensor, rounded: Callable[[Any, Tensor], Tensor], start: int, stop: int
    ) -> Tensor:
        """Return the tokens that are held with those from ``start`` to ``stop`` stored."""
        if start == stop:
            return held
        before, due, after = held.tensor_split((start, stop), dim=-2)
        return torch.cat([before, rounded(self.spec, due), after], dim=-2)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what was stored in blocks cannot be taken back token by token."""
        if tokens_to_remove:
            raise self._no_way_back()

    def activate_past_recording(self) -> None:
        """Refuse, as :meth:`crop` does."""
        raise self._no_way_back()

    def _no_way_back(self) -> UnsupportedError:
        """Return the error of decoding that takes tokens back."""
        return UnsupportedError(
            f"assisted decoding takes tokens back from the cache, which {self.spec.token()} "
            "cannot. Generate without an assistant."
        )


class CompressedSlidingLayer(CompressedLayer, DynamicSlidingWindowLayer):
    """The same behind a sliding window.

    Tokens that the window has left behind are kept, as a block is stored when it is complete.
    """

    def __init__(self, spec: Any, sliding_window: int) -> None:
        super().__init__(spec, sliding_window=sliding_window)
        self.record_past = True


class _Attended(NamedTuple):
    """What a token attends to: stored keys and values, and the latest, its own included."""

    keys: Stored | None
    values: Stored | None
    latest_keys: Tensor
    latest_values: Tensor


class PackedLayer(CompressedLayer):
    """The keys and values of one attention, stored ones in few bits; the latest are dense.

    ``keys`` and ``values`` hold the latest alone. The method has ``pack_keys``, ``pack_values``.

    Args:
        spec: How they are stored; blocks of keys fill whole bytes (see :func:`packs`).
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty."""
        super().lazy_initialization(key_states, value_states)
        self.packed: tuple[Stored | None, Stored | None] = (None, None)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens, note what they attend to, then store what is due.

        Returns the latest keys and values, dense; :meth:`attend` knows the stored ones.
        """
        latest = DynamicLayer.update(self, key_states, value_states)
        self.attended = _Attended(*self.packed, *latest)
        due = self.method.stored(self.spec, self.get_seq_length())
        keys, values = self.packed
        count = due[0] - self.stored[0]
        if count:
            made = self.method.pack_keys(self.spec, self.keys[..., :count, :])
            keys, self.keys = _joined(keys, made, -1), self.keys[..., count:, :].contiguous()
        count = due[1] - self.stored[1]
        if count:
            made = self.method.pack_values(self.spec, self.values[..., :count, :])
            values, self.values = (
                _joined(values, made, -2),
                self.values[..., count:, :].contiguous(),
            )
        self.packed, self.stored = (keys, values), due
        return latest

    def attend(
        self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Attended:
        """Attend to what the last :meth:`update` noted; query is (batch, heads, tokens, width).

        One token without a mask reads the codes; otherwise they are decoded for the moment.
        """
        found = self.attended
        del self.attended  # which may hold what has been packed since
        scaling = options.get("scaling")
        usual = scaling is None or math.isclose(scaling, query.shape[-1] ** -0.5)
        if query.shape[-2] == 1 and attention_mask is None and usual:
            latest = found.latest_keys.contiguous(), found.latest_values.contiguous()
            vector = query[..., 0, :].contiguous()
            output = KERNELS["kv_attention"](vector, found.keys, found.values, *latest)
            return output[:, None], None
        keys, values = self._dense(found)
        return sdpa_attention_forward(module, query, keys, values, attention_mask, **options)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return all keys and values, (batch, kv heads, tokens, width), as they are held."""
        return self._dense(_Attended(*self.packed, self.keys, self.values))

    @staticmethod
    def _dense(found: _Attended) -> tuple[Tensor, Tensor]:
        """Return keys and values with the stored ones decoded."""
        keys, values = found.latest_keys, found.latest_values
        if found.keys is not None:
            stored = found.keys.dense(found.keys.codes.shape[-1] * 8 // found.keys.bits)
            keys = torch.cat([stored.transpose(-1, -2).to(keys.dtype), keys], dim=-2)
        if found.values is not None:
            stored = found.values.dense(values.shape[-1])
            values = torch.cat([stored.to(values.dtype), values], dim=-2)
        return keys, values

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors between two passes."""
        parts = [part for stored in self.packed if stored is not None for part in stored[:3]]
        return sum(tensor.nbytes for tensor in (*parts, self.keys, self.values))

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        if not self.is_initialized or not self.values.numel():
            return 0
        return self.stored[1] + self.values.shape[-2]

    def offload(self) -> None:
        """Move everything to the processor."""
        if self.is_initialized:
            self._each(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move everything back to the device."""
        if self.is_initialized:
            self._each(lambda tensor: tensor.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the sequences of other beams."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.get_seq_length():
            self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        if self.get_seq_length():
            self._each(lambda tensor: tensor[indices.to(tensor.device)])

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor."""
        self.keys, self.values = change(self.keys), change(self.values)
        keys, values = (
            stored and type(stored)(*map(change, stored[:3]), stored.bits)
            for stored in self.packed
        )
        self.packed = (keys, values)


def _joined(held: Stored | None, new: Stored, dim: int) -> Stored:
    """Return stored tokens with others after them, which lie along ``dim``."""
    if held is None:
        return new
    parts = (torch.cat(pair, dim=dim) for pair in zip(held[:3], new[:3], strict=True))
    return type(new)(*parts, new.bits)


def packs(model: Any, spec: Any) -> str | None:
    """Return why the caches of a model's attentions stay decoded under a spec; ``None``: packed.

    Args:
        model: A decoder.
        spec: How keys and values are stored.
    """
    method = METHODS[spec.method]
    if not hasattr(method, "pack_keys"):
        return f"{spec.method} has no packed form"
    if spec.residual_length * spec.key_bits % 8:
        return "a block of keys does not fill whole bytes"
    if model.config._attn_implementation not in ("sdpa", PACKED):
        return f"the model attends through {model.config._attn_implementation!r}"
    probe = torch.empty(1, 1, 16, dtype=model.dtype, device=model.device)
    kernel = KERNELS["kv_attention"]
    reasons = kernel.explain(probe, None, None, probe[None], probe[None])
    lacking = [f"{name}: {reasons[name]}" for name in kernel.names[:-1] if reasons[name]]
    return "; ".join(lacking) if len(lacking) == len(kernel.names) - 1 else None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Attended:
    """Attend as transformers calls it; where the layer of the cache is packed, it attends."""
    layer = getattr(module, "cache_layer", None)
    if isinstance(layer, PackedLayer):
        return layer.attend(module, query, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(PACKED, _attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
