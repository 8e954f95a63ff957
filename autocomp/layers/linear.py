"""Modules that keep their weight packed and decode it when it is first used."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocomp.formats.base import CompressedWeight
from autocomp.formats.dense import Dense
from autocomp.models.weights import embedding_scale


class Packed(nn.Module):
    """A tree of packed tensors; ``left.codes`` is the buffer ``codes`` of the child ``left``.

    Packed tensors move between devices but are never cast: their dtype is part of the format.

    Args:
        tensors: Packed tensors by local name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.packed_names = tuple(tensors)
        children: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            child, _, rest = name.partition(".")
            if rest:
                children.setdefault(child, {})[rest] = tensor
            else:
                self.register_buffer(name, tensor)
        for child, inner in children.items():
            self.add_module(child, Packed(inner))

    def packed(self) -> dict[str, Tensor]:
        """Return the packed tensors by local name."""
        return {name: self.get_buffer(name) for name in self.packed_names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the packed tensors with the module, undoing casts."""
        own = {name: self._buffers[name] for name in self.packed_names if name in self._buffers}
        super()._apply(fn, recurse)
        for name, before in own.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class CompressedModule(Packed):
    """A packed weight with a decoded copy that is made on first use and kept.

    Args:
        weight: The packed weight, dense form (out, in).
        dtype: Compute dtype of the decoded copy; ``module.to(dtype)`` changes it.
    """

    def __init__(self, weight: CompressedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight.tensors)
        self.layout = weight.layout
        self.out_features, self.in_features = weight.layout.shape
        self.like: Tensor
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self._decoded: Tensor | None = None
        self._prepare: Callable[[Tensor], Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def compressed(self) -> CompressedWeight:
        """Return the packed weight."""
        return CompressedWeight(self.layout, self.packed())

    @property
    def weight(self) -> Tensor:
        """What the prepared input is multiplied with, (out, in), in the compute dtype."""
        if self._decoded is None:
            with torch.inference_mode(False), torch.no_grad():
                operands = self.layout.operands(self.packed())
                self._decoded, self._prepare = operands.weight.to(self.like), operands.prepare
        return self._decoded

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return inputs (…, in) as the weight expects them: scaled, rotated, rounded."""
        _ = self.weight
        return inputs if self._prepare is None else self._prepare(inputs)

    def hold(self, weight: Tensor) -> None:
        """Multiply by another weight, (out, in), until it is forgotten; its graph is kept."""
        _ = self.weight
        self._decoded = weight.to(self.like)

    def keep_rounded(self, dtype: torch.dtype) -> None:
        """Round the decoded copy to ``dtype``, as a dense file would, in the compute dtype."""
        self._decoded, self._prepare = self.layout.to_dense(self.packed()), None
        self._decoded = self._decoded.to(dtype).to(self.like)

    def forget(self) -> None:
        """Drop the decoded copy; the next use decodes again."""
        self._decoded = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Drop the decoded copy when the module moves or changes its compute dtype."""
        self.forget()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Return shape and format, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, format={self.layout.name}"


def _forget(module: nn.Module, _: Any) -> None:
    """Drop a decoded copy whose packed tensors have just been loaded anew."""
    if isinstance(module, CompressedModule):
        module.forget()


class CompressedLinear(CompressedModule):
    """``y = x Ŵᵀ + b`` with a packed weight.

    Args:
        weight: The packed weight, dense form (out, in).
        bias: (out,) or ``None``.
        dtype: Compute dtype.
    """

    def __init__(self, weight: CompressedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        bias = None if bias is None else bias.to(dtype)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output, (…, out), for inputs (…, in)."""
        return functional.linear(self.prepared(inputs), self.weight, self.bias)


class CompressedEmbedding(CompressedModule):
    """Rows of a packed table of shape (vocab, hidden), times a constant.

    Args:
        weight: The packed table, dense form (vocab, hidden).
        dtype: Compute dtype of the decoded copy.
        scale: What the rows are multiplied by, rounded to the compute dtype.
    """

    def __init__(self, weight: CompressedWeight, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__(weight, dtype)
        self.multiplier = scale  # a packed table may hold a tensor called scale

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows, (…, hidden), of integer tokens (…)."""
        rows = functional.embedding(tokens, self.weight)
        return rows if self.multiplier == 1 else rows * rows.new_full((), self.multiplier)


class TiedHead(nn.Module):
    """A head without a weight of its own: logits through the decoded embedding.

    Args:
        embedding: The embedding whose table, (vocab, hidden), is used.
        bias: (vocab,) or ``None``.
    """

    def __init__(self, embedding: nn.Module, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.bias = bias
        self._embedding = (embedding,)  # in a tuple, so that its tensors are not listed twice

    @property
    def weight(self) -> Tensor:
        """The embedding's decoded table, (vocab, hidden)."""
        weight: Tensor = self._embedding[0].weight  # type: ignore[assignment]
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, (…, vocab), for inputs (…, hidden)."""
        return functional.linear(inputs, self.weight, self.bias)


def site_linear(weight: CompressedWeight, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """Return the linear of a stored weight; a plain ``nn.Linear`` when it is dense.

    Args:
        weight: The stored weight, dense form (out, in).
        bias: (out,) or ``None``.
        dtype: Compute dtype.
    """
    if not isinstance(weight.layout, Dense):
        return CompressedLinear(weight, bias, dtype)
    out_features, in_features = weight.layout.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = nn.Parameter(weight.tensors["weight"].to(dtype), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return module


def site_embedding(weight: CompressedWeight, original: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the embedding of a stored table; the original with that table when it is dense.

    Args:
        weight: The stored table, dense form (vocab, hidden).
        original: The model's own embedding, which may multiply its rows by a constant.
        dtype: Compute dtype.
    """
    if not isinstance(weight.layout, Dense):
        return CompressedEmbedding(weight, dtype, embedding_scale(original))
    original.weight = nn.Parameter(weight.tensors["weight"].to(dtype), requires_grad=False)
    return original
