"""Modules that keep their weight packed, and what they keep beside it.

The **memory policy** says whether a decoded copy stays. ``packed``, the default, keeps none: every
call goes through the kernel operations, which read the codes or decode them on the way, so a model
takes the memory of its file. On first use the codes go into the order of the fastest kernel for
the compute dtype, at about the same size. ``decoded`` decodes on first use and keeps the dense
copy: the fastest for many tokens, at the memory of the dense model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocomp.formats.base import CompressedWeight
from autocomp.formats.dense import Dense
from autocomp.layers.compiled import description, packed_matmul, packed_rows
from autocomp.models.weights import embedding_scale

Memory = Literal["packed", "decoded"]


class Packed(nn.Module):
    """A tree of packed tensors; ``left.codes`` is the buffer ``codes`` of the child ``left``.

    Packed tensors move between devices but are never cast: their dtype is part of the format.

    Args:
        tensors: Packed tensors by local name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.packed_names: tuple[str, ...] = ()
        self.set_packed(tensors)

    def set_packed(self, tensors: Mapping[str, Tensor]) -> None:
        """Put packed tensors in the place of those that are here."""
        for name in self.packed_names:
            child = name.partition(".")[0]
            (self._modules if child in self._modules else self._buffers).pop(child, None)
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
    """A packed weight, used as it is or through a decoded copy.

    Args:
        weight: The packed weight, dense form (out, in).
        dtype: Compute dtype; ``module.to(dtype)`` changes it.
        memory: Whether a decoded copy is kept.
    """

    def __init__(
        self, weight: CompressedWeight, dtype: torch.dtype, memory: Memory = "packed"
    ) -> None:
        super().__init__(weight.tensors)
        self.layout = weight.layout
        self.memory = memory
        self.out_features, self.in_features = weight.layout.shape
        self.like: Tensor
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self._decoded: Tensor | None = None
        self._merged = False
        self._settled: dict[str, Tensor] | None = None
        self._description = description(self.layout, weight.tensors)
        self.register_state_dict_pre_hook(_unsettle)
        self.register_load_state_dict_pre_hook(_unsettle)

    def compressed(self) -> CompressedWeight:
        """Return the packed weight as it is stored."""
        tensors = self.packed()
        stored = tensors if self._settled is None else self.layout.unsettle(tensors)
        return CompressedWeight(self.layout, stored)

    @property
    def weight(self) -> Tensor:
        """What the prepared input is multiplied with, (out, in), in the compute dtype.

        It is decoded at every look under the policy ``packed``.
        """
        if self._decoded is not None:
            return self._decoded
        with torch.inference_mode(False), torch.no_grad():
            decoded = self.compressed().operands().weight.to(self.like)
        if self.memory == "decoded":
            self._decoded = decoded
        return decoded

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return inputs (…, in) as the weight expects them: scaled, rotated, rounded."""
        return inputs if self._merged else self.layout.prepare(self.packed(), inputs)

    def multiply(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x Ŵᵀ + b``, (…, out), for inputs (…, in)."""
        trained = torch.is_grad_enabled() and inputs.requires_grad
        if self._decoded is not None or self.memory == "decoded" or trained:
            return functional.linear(self.prepared(inputs), self.weight, bias)
        rows, tensors = inputs.reshape(-1, self.in_features), self.settle()
        if torch.compiler.is_compiling():
            found = packed_matmul(rows, list(tensors.values()), self._description)
        else:
            found = self.layout.matmul(tensors, rows)
        found = found.view(*inputs.shape[:-1], self.out_features)
        return found if bias is None else found + bias

    def settle(self, *, copy: bool = False) -> dict[str, Tensor]:
        """Put the packed tensors in the order of the fastest kernel, once, and return them.

        Args:
            copy: Copy the tensors that stay as they are, which may be views of a file.
        """
        if self._settled is None:
            if torch.compiler.is_compiling():  # buffers stay as they are while a graph is made
                return self.packed()
            with torch.inference_mode(False), torch.no_grad():
                stored = self.packed()
                found = self.layout.settle(stored, self.like.dtype)
                kept = set(map(id, stored.values())) if copy else set()
                self.set_packed({n: t.clone() if id(t) in kept else t for n, t in found.items()})
            self._settled = self.packed()
            self._description = description(self.layout, self._settled)
        return self._settled

    def unsettle(self) -> None:
        """Put the packed tensors back as they are stored, to the bit."""
        if self._settled is not None:
            with torch.inference_mode(False), torch.no_grad():
                self.set_packed(self.compressed().tensors)
            self._settled = None
            self._description = description(self.layout, self.packed())

    def hold(self, weight: Tensor) -> None:
        """Multiply by another weight, (out, in), until it is forgotten; its graph is kept."""
        self._decoded, self._merged = weight.to(self.like), False

    def keep_rounded(self, dtype: torch.dtype) -> None:
        """Round the decoded copy to ``dtype``, as a dense file would, in the compute dtype."""
        self._decoded, self._merged = self.compressed().to_dense(), True
        self._decoded = self._decoded.to(dtype).to(self.like)

    def forget(self) -> None:
        """Drop the decoded copy; the next use decodes again."""
        self._decoded, self._merged = None, False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Drop what is derived when the module moves or changes its compute dtype."""
        self.forget()
        self.unsettle()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Return shape, format and policy, for ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, format={self.layout.name}, "
            f"memory={self.memory}"
        )


def _unsettle(module: nn.Module, *_: Any) -> None:
    """Show and take tensors as they are stored, and drop what was derived from them."""
    if isinstance(module, CompressedModule):
        module.forget()
        module.unsettle()


class CompressedLinear(CompressedModule):
    """``y = x Ŵᵀ + b`` with a packed weight.

    Args:
        weight: The packed weight, dense form (out, in).
        bias: (out,) or ``None``.
        dtype: Compute dtype.
        memory: Whether a decoded copy is kept.
    """

    def __init__(
        self,
        weight: CompressedWeight,
        bias: Tensor | None,
        dtype: torch.dtype,
        memory: Memory = "packed",
    ) -> None:
        super().__init__(weight, dtype, memory)
        bias = None if bias is None else bias.to(dtype)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output, (…, out), for inputs (…, in)."""
        return self.multiply(inputs, self.bias)


class CompressedEmbedding(CompressedModule):
    """Rows of a packed table of shape (vocab, hidden), times a constant.

    Under the policy ``packed`` only the rows that are asked for are decoded.

    Args:
        weight: The packed table, dense form (vocab, hidden).
        dtype: Compute dtype.
        scale: What the rows are multiplied by, rounded to the compute dtype.
        memory: Whether a decoded copy is kept.
    """

    def __init__(
        self,
        weight: CompressedWeight,
        dtype: torch.dtype,
        scale: float = 1.0,
        memory: Memory = "packed",
    ) -> None:
        super().__init__(weight, dtype, memory)
        self.multiplier = scale  # a packed table may hold a tensor called scale

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows, (…, hidden), of integer tokens (…)."""
        if self._decoded is not None or self.memory == "decoded":
            rows = functional.embedding(tokens, self.weight)
        else:
            tensors, index = self.settle(), tokens.reshape(-1)
            if torch.compiler.is_compiling():
                found = packed_rows(index, list(tensors.values()), self._description)
            else:
                found = self.layout.rows(tensors, index)
            rows = found.to(self.like.dtype).view(*tokens.shape, self.in_features)
        return rows if self.multiplier == 1 else rows * rows.new_full((), self.multiplier)


class TiedHead(nn.Module):
    """A head without a weight of its own: logits through the embedding.

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
        embedding = self._embedding[0]
        if isinstance(embedding, CompressedModule):
            return embedding.multiply(inputs, self.bias)
        return functional.linear(inputs, self.weight, self.bias)


def site_linear(
    weight: CompressedWeight, bias: Tensor | None, dtype: torch.dtype, memory: Memory = "packed"
) -> nn.Module:
    """Return the linear of a stored weight; a plain ``nn.Linear`` when it is dense.

    Args:
        weight: The stored weight, dense form (out, in).
        bias: (out,) or ``None``.
        dtype: Compute dtype.
        memory: Whether a decoded copy is kept.
    """
    if not isinstance(weight.layout, Dense):
        return CompressedLinear(weight, bias, dtype, memory)
    out_features, in_features = weight.layout.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = nn.Parameter(
        weight.tensors["weight"].to(dtype, copy=True), requires_grad=False
    )
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return module


def site_embedding(
    weight: CompressedWeight, original: nn.Module, dtype: torch.dtype, memory: Memory = "packed"
) -> nn.Module:
    """Return the embedding of a stored table; the original with that table when it is dense.

    Args:
        weight: The stored table, dense form (vocab, hidden).
        original: The model's own embedding, which may multiply its rows by a constant.
        dtype: Compute dtype.
        memory: Whether a decoded copy is kept.
    """
    if not isinstance(weight.layout, Dense):
        return CompressedEmbedding(weight, dtype, embedding_scale(original), memory)
    original.weight = nn.Parameter(
        weight.tensors["weight"].to(dtype, copy=True), requires_grad=False
    )
    return original
