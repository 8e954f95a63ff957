"""Where the sites of a decoder are, found by structure instead of by class name.

Understood: a token embedding, one list of blocks, each with exactly one attention and one MLP of
which one linear writes to the residual stream and the others read it, a final norm, and a tied or
untied head whose logits are ``W h + b``. That is the Llama family (Llama, Mistral, Qwen2, Qwen3,
SmolLM), Gemma 1 and 3 (norms behind the sub-blocks too), GPT-2, OPT, GPT-NeoX, Phi and Phi-3.

The sub-blocks may follow one another or run in parallel; in a block with a single norm both read
that norm. An MLP may have no module of its own: where its linears lie in the block itself, as in
OPT, the sub-block is called ``<block>.mlp``, and its linears are what there is to replace.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from autocomp.core.errors import UnsupportedError
from autocomp.core.sketch import Site, Sketch, TensorInfo
from autocomp.models.weights import get_weight, is_linear, is_norm

SUPPORTED = (
    "Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma 1 or 3, GPT-2, OPT, GPT-NeoX, Phi or Phi-3"
)

BARE_MLP = "mlp"
"""Name of an MLP that is no module, in its block."""

NONLINEAR_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which logits are not ``W h + b``."""

Part = tuple[str, list[str]]
"""Name of a sub-block and of its linears, in its block."""


@dataclass(frozen=True)
class Structure:
    """Names and modules of a decoder.

    Args:
        model: The model, real or on the meta device.
        embedding_name: Token embedding.
        head_name: Untied lm_head, or ``None`` when it shares the embedding's weight.
        block_names: Decoder blocks, in order.
        attention_names: Attention of each block.
        mlp_names: MLP of each block; the name of no module where its linears lie in the block.
        members: Linears of each attention and MLP; the last one writes to the residual stream.
        final_norm_name: Norm between the last block and the head.
    """

    model: PreTrainedModel
    embedding_name: str
    head_name: str | None
    block_names: tuple[str, ...]
    attention_names: tuple[str, ...]
    mlp_names: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]
    final_norm_name: str

    def get(self, name: str) -> nn.Module:
        """Return a module by its full name."""
        module: nn.Module = self.model.get_submodule(name)
        return module

    def attention_name(self, index: int) -> str:
        """Return the attention module's name of block ``index``."""
        return self.attention_names[index]

    def mlp_name(self, index: int) -> str:
        """Return the MLP's name of block ``index``."""
        return self.mlp_names[index]

    def linears(self, name: str) -> tuple[str, ...]:
        """Return the full names of a sub-block's linears; the writer is the last."""
        return self.members[name]

    def reads(self) -> dict[str, str]:
        """Return, by linear (an untied head included), the name of the input that it reads.

        Linears with the same name read the same tensor.
        """
        found: dict[str, str] = {}
        for index, block in enumerate(self.blocks):
            attention, mlp = self.attention_name(index), self.mlp_name(index)
            shared = sum(is_norm(child) for child in block.children()) == 1
            for name, source in ((attention, attention), (mlp, attention if shared else mlp)):
                *readers, writer = self.members[name]
                found |= dict.fromkeys(readers, f"{source}.in") | {writer: f"{writer}.in"}
        if self.head_name is not None:
            found[self.head_name] = f"{self.head_name}.in"
        return found

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks."""
        return [self.get(name) for name in self.block_names]

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return self.get(self.final_norm_name)

    def head_weight(self) -> Tensor:
        """Return the (vocab, hidden) matrix that makes logits; the embedding's when tied."""
        return get_weight(self.model, self.head_name or self.embedding_name)

    def head_bias(self) -> Tensor | None:
        """Return the (vocab,) bias of the logits, or ``None``."""
        head: Any = self.model.get_output_embeddings()
        return None if head.bias is None else head.bias.detach()


def structure(model: PreTrainedModel) -> Structure:
    """Find the parts of a decoder.

    Raises:
        UnsupportedError: If the model is not built as this module's first lines say.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise _unsupported(model, "it has no token embedding or no linear head")
    if embedding.embedding_dim != model.config.hidden_size:
        raise _unsupported(model, "its embeddings are projected to the width of its blocks")
    for key in NONLINEAR_LOGITS:
        if getattr(model.config, key, None) not in (None, 1):
            raise _unsupported(model, f"it scales or caps its logits ({key})")
    body, blocks = _body(model)
    block_names = tuple(names[block] for block in blocks)
    pairs = [_attention_and_mlp(model, block) for block in blocks]
    members = {
        f"{block}.{name}": tuple(f"{block}.{linear}" for linear in linears)
        for block, pair in zip(block_names, pairs, strict=True)
        for name, linears in pair
    }
    norms = [child for child in body.children() if is_norm(child)]
    if len(norms) != 1:
        raise _unsupported(model, f"it has {len(norms)} norms after its blocks instead of one")
    attentions, mlps = list(members)[::2], list(members)[1::2]  # they take turns
    return Structure(
        model=model,
        embedding_name=names[embedding],
        head_name=None if head.weight is embedding.weight else names[head],
        block_names=block_names,
        attention_names=tuple(attentions),
        mlp_names=tuple(mlps),
        members=members,
        final_norm_name=names[norms[0]],
    )


def build_sketch(model: PreTrainedModel, source: str, *, dtype: str) -> Sketch:
    """Return the sketch of a model, real or on the meta device.

    Every linear is a group of its own, the embedding with a tied head too.

    Args:
        model: A decoder.
        source: Name or path, for messages.
        dtype: Dtype of uncompressed weights in files: ``float16`` or ``bfloat16``.

    Raises:
        UnsupportedError: If the structure is not understood.
    """
    parts = structure(model)
    sites = tuple(_sites(parts))
    config = model.config
    weights = [site for site in sites if site.kind not in ("subblock", "cache")]
    return Sketch(
        model=source,
        family=config.model_type,
        sites=sites,
        rest=_rest(model, weights, dtype),
        dtype=dtype,
        groups=tuple((site.name,) for site in sites),
        num_layers=len(parts.block_names),
        num_kv_heads=_cache_shape(model)[0],
        head_dim=_cache_shape(model)[1],
        hidden_size=config.hidden_size,
        intermediate_size=max(
            get_weight(model, parts.linears(name)[-1]).shape[1] for name in parts.mlp_names
        ),
        vocab_size=parts.head_weight().shape[0],
    )


def groups(sketch: Sketch, *, fused: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return the groups that share one decision.

    Args:
        sketch: A model's sketch.
        fused: Tie the linears of a sub-block that read the same input (q/k/v, gate/up), as servers
            that fuse them need; otherwise every site stands alone.
    """
    tied: dict[tuple[str, str], list[str]] = {}
    for site in sketch.sites:
        shared = fused and site.kind == "linear"
        key = (sketch.owner[site.name], site.reads) if shared else ("", site.name)
        tied.setdefault(key, []).append(site.name)
    return tuple(tuple(members) for members in tied.values())


def _body(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """Return the module that holds the list of decoder blocks, and that list."""
    count = model.config.num_hidden_layers
    lists = [
        (owner, child)
        for owner in model.base_model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(lists) != 1:
        raise _unsupported(model, f"it has {len(lists)} lists of {count} blocks instead of one")
    return lists[0]


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder blocks of a model in any state: packed, or with bypasses.

    Raises:
        UnsupportedError: If they are not one list.
    """
    return list(_body(model)[1])


def _attention_and_mlp(model: PreTrainedModel, block: nn.Module) -> list[Part]:
    """Return a block's two sub-blocks; the attention is the one that knows its cache index."""
    if any(parameter.dim() > 2 for parameter in block.parameters()):
        raise _unsupported(model, "a block holds stacked expert weights")
    attention: list[Part] = []
    mlp: list[Part] = []
    for name, child in block.named_children():
        if linears := [f"{name}.{inner}" for inner in _linears(child)]:
            (attention if hasattr(child, "layer_idx") else mlp).append((name, linears))
    if bare := [name for name, child in block.named_children() if is_linear(child)]:
        mlp.append((BARE_MLP, bare))
    if len(attention) != 1 or len(mlp) != 1:
        raise _unsupported(
            model, f"a block has {len(attention)} attention and {len(mlp)} MLP modules"
        )
    return [(name, _writer_last(model, block, linears)) for name, linears in (*attention, *mlp)]


def _writer_last(model: PreTrainedModel, block: nn.Module, linears: list[str]) -> list[str]:
    """Return the linears of a sub-block with the one that writes to the residual stream last.

    It is as wide as the stream while all others read it; of several such, as where all matrices
    are square, it is the one that was defined last.
    """
    hidden = model.config.hidden_size
    shapes = {name: get_weight(block, name).shape for name in linears}
    for writer in reversed(linears):
        others = [name for name in linears if name != writer]
        reading = all(shapes[name][1] == hidden for name in others)
        if others and reading and shapes[writer][0] == hidden:
            return [*others, writer]
    raise _unsupported(
        model,
        f"{', '.join(linears)} of a block are not one linear that writes to the residual stream "
        "and others that read it",
    )


def _linears(module: nn.Module) -> list[str]:
    """Return the names of the linears inside a module, relative to it."""
    return [name for name, child in module.named_modules() if name and is_linear(child)]


def _sites(parts: Structure) -> Iterator[Site]:
    """Yield all sites in model order; a sub-block precedes its members."""
    yield _weight_site(parts, parts.embedding_name, "embedding")
    heads, reads = _cache_shape(parts.model), parts.reads()
    for block in range(len(parts.block_names)):
        attention = parts.attention_name(block)
        for name in (attention, parts.mlp_name(block)):
            members = inside = parts.linears(name)
            if name == attention:
                cache = Site(f"{name}.cache", "cache", "cache", heads, block)
                inside = (*members, cache.name)
            yield Site(name, "subblock", name.rpartition(".")[2], block=block, members=inside)
            for member in members:
                yield _weight_site(parts, member, "linear", block, reads[member])
            if name == attention:
                yield cache
    if parts.head_name is not None:
        yield _weight_site(parts, parts.head_name, "head", reads=reads[parts.head_name])


def _cache_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Return (kv heads, head width) of a layer's cache."""
    config = model.config
    heads = config.num_attention_heads
    return (
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _weight_site(parts: Structure, name: str, kind: str, block: int = -1, reads: str = "") -> Site:
    """Return the site of one weight."""
    rows, columns = get_weight(parts.model, name).shape
    role = name.rpartition(".")[2]
    return Site(name, kind, role, (rows, columns), block, reads=reads)  # type: ignore[arg-type]


def _rest(model: PreTrainedModel, weights: list[Site], dtype: str) -> dict[str, TensorInfo]:
    """Return every stored tensor that is no site's weight; a tied head is an alias of one."""
    unique = dict(model.named_parameters()) | dict(model.named_buffers())
    taken = {f"{site.name}.weight" for site in weights}
    return {
        name: TensorInfo(tuple(tensor.shape), _stored_dtype(tensor, dtype))
        for name, tensor in model.state_dict().items()
        if name in unique and name not in taken
    }


def _stored_dtype(tensor: Tensor, dtype: str) -> str:
    """Return the dtype name that a tensor has in a file."""
    return dtype if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _unsupported(model: PreTrainedModel, why: str) -> UnsupportedError:
    """Return the error of a model whose structure is not understood."""
    return UnsupportedError(
        f"{model.config.model_type} ({type(model).__name__}) is not supported: {why}. Supported: "
        f"dense decoders built like {SUPPORTED}."
    )
