"""A variant without weights: names, shapes, dtypes and groups, enough to price any plan."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

SiteKind = Literal["linear", "embedding", "head", "subblock", "cache"]

DTYPE_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor in a weight file; ``dtype`` as torch spells it (``float16``)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        size = DTYPE_BYTES[self.dtype]
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True, slots=True)
class Site:
    """Something that a plan decides about.

    Args:
        name: Module name, ``model.layers.0.self_attn.q_proj``; the key in plans.
        kind: ``linear``, ``embedding`` (a tied head included), ``head`` (an untied lm_head),
            ``subblock`` (an attention or MLP module that may be bypassed) or ``cache`` (the keys
            and values of one attention, named ``<attention>.cache``).
        role: The last part of the name, the same in every block: ``q_proj``, ``mlp``.
        shape: (out, in) of the weight, whatever the module's own layout; (0, 0) for a sub-block;
            (kv heads, head width) for a cache.
        block: Index of the decoder block, or -1 outside the blocks.
        members: Linears inside a sub-block, and its cache; empty otherwise.
        reads: Name shared by all linears that read the same input, such as
            ``model.layers.0.self_attn.in``; their statistics are the same tensor.
    """

    name: str
    kind: SiteKind
    role: str
    shape: tuple[int, int] = (0, 0)
    block: int = -1
    members: tuple[str, ...] = ()
    reads: str = ""


@dataclass(frozen=True)
class Sketch:
    """A model's architecture as the search sees it.

    Args:
        model: Source name or path, for messages.
        family: ``model_type`` of the config.
        sites: All sites in model order.
        rest: Every other stored parameter (norms, biases, positions) with its stored dtype.
        dtype: Dtype in which uncompressed weights are stored: ``float16`` or ``bfloat16``.
        groups: Sites that share one decision; every linear, embedding and head appears exactly
            once, and every sub-block is a group of its own.
        num_layers: Decoder blocks.
        num_kv_heads: Key/value heads a layer.
        head_dim: Width of a head.
        hidden_size: Width of the residual stream.
        intermediate_size: Widest hidden layer of the MLP.
        vocab_size: Rows of the embedding.
    """

    model: str
    family: str
    sites: tuple[Site, ...]
    rest: dict[str, TensorInfo] = field(hash=False)
    dtype: str
    groups: tuple[tuple[str, ...], ...]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int

    @cached_property
    def by_name(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.sites}

    @cached_property
    def owner(self) -> dict[str, str]:
        """Sub-block name by member linear."""
        return {member: site.name for site in self.sites for member in site.members}

    def __getitem__(self, name: str) -> Site:
        """Return a site by name."""
        return self.by_name[name]

    def weights(self) -> Iterator[Site]:
        """Iterate over the sites that hold a weight (all but sub-blocks and caches)."""
        return (site for site in self.sites if site.kind not in ("subblock", "cache"))

    def caches(self) -> Iterator[Site]:
        """Iterate over the caches, in block order."""
        return (site for site in self.sites if site.kind == "cache")

    def subblocks(self) -> Iterator[Site]:
        """Iterate over the sub-blocks."""
        return (site for site in self.sites if site.kind == "subblock")
