"""Where the sites of a decoder are, found by structure instead of by class name.

Understood: a token embedding, one list of blocks, each with exactly one attention and one MLP
whose last linear writes to the residual stream, a final norm, and a tied or untied head. That is
the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM) and GPT-2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from autocomp.core.errors import UnsupportedError
from autocomp.core.sketch import Site, Sketch, TensorInfo
from autocomp.models.weights import get_weight, is_linear


@dataclass(frozen=True)
class Structure:
    """Names and modules of a decoder.

    Args:
        model: The model, real or on the meta device.
        embedding_name: Token embedding.
        head_name: Untied lm_head, or ``None`` when it shares the embedding's weight.
        block_names: Decoder blocks, in order.
        attention_names: Attention of each block.
        mlp_names: MLP of each block.
        final_norm_name: Norm between the last block and the head.
    """

    model: PreTrainedModel
    embedding_name: str
    head_name: str | None
    block_names: tuple[str, ...]
    attention_names: tuple[str, ...]
    mlp_names: tuple[str, ...]
    final_norm_name: str

    def get(self, name: str) -> nn.Module:
        """Return a module by its full name."""
        module: nn.Module = self.model.get_submodule(name)
        return module

    def attention_name(self, index: int) -> str:
        """Return the attention module's name of block ``index``."""
        return self.attention_names[index]

    def mlp_name(self, index: int) -> str:
        """Return the MLP module's name of block ``index``."""
        return self.mlp_names[index]

    def linears(self, name: str) -> tuple[str, ...]:
        """Return the full names of the linears inside a module, in model order."""
        return tuple(f"{name}.{child}" for child in _linears(self.get(name)))

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


def structure(model: PreTrainedModel) -> Structure:
    """Find the parts of a decoder.

    Raises:
        UnsupportedError: If the model is not built as this module's first lines say.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise _unsupported(model, "it has no token embedding or no linear head")
    blocks = _block_list(model)
    pairs = [_attention_and_mlp(model, block) for block in blocks]
    body: Any = model.base_model
    norms = [
        child
        for child in body.children()
        if isinstance(getattr(child, "weight", None), nn.Parameter) and child.weight.dim() == 1
    ]
    if len(norms) != 1:
        raise _unsupported(model, f"it has {len(norms)} norms after its blocks instead of one")
    return Structure(
        model=model,
        embedding_name=names[embedding],
        head_name=None if head.weight is embedding.weight else names[head],
        block_names=tuple(names[block] for block in blocks),
        attention_names=tuple(names[attention] for attention, _ in pairs),
        mlp_names=tuple(names[mlp] for _, mlp in pairs),
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
    heads = config.num_attention_heads
    weights = [site for site in sites if site.kind != "subblock"]
    return Sketch(
        model=source,
        family=config.model_type,
        sites=sites,
        rest=_rest(model, weights, dtype),
        dtype=dtype,
        groups=tuple((site.name,) for site in sites),
        num_layers=len(parts.block_names),
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden_size=config.hidden_size,
        intermediate_size=max(
            site.shape[0]
            for index, name in enumerate(parts.mlp_names)
            for site in weights
            if site.block == index and site.name.startswith(f"{name}.")
        ),
        vocab_size=parts.head_weight().shape[0],
    )


def groups(sketch: Sketch, *, fused: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return the groups that share one decision.

    Args:
        sketch: A model's sketch.
        fused: Tie the linears that read the same input (q/k/v, gate/up), as servers that fuse them
            need; otherwise every site stands alone.
    """
    tied: dict[str, list[str]] = {}
    for site in sketch.sites:
        shared = fused and site.kind == "linear"
        tied.setdefault(site.reads if shared else site.name, []).append(site.name)
    return tuple(tuple(members) for members in tied.values())


def _block_list(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder blocks."""
    count = model.config.num_hidden_layers
    lists = [
        child
        for child in model.base_model.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(lists) != 1:
        raise _unsupported(model, f"it has {len(lists)} lists of {count} blocks instead of one")
    return lists[0]


def _attention_and_mlp(model: PreTrainedModel, block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a block's two sub-blocks; the attention is the one that knows its cache index."""
    if any(parameter.dim() > 2 for parameter in block.parameters()):
        raise _unsupported(model, "a block holds stacked expert weights")
    holders = [child for child in block.children() if _linears(child)]
    attention = [child for child in holders if hasattr(child, "layer_idx")]
    mlp = [child for child in holders if not hasattr(child, "layer_idx")]
    if len(attention) != 1 or len(mlp) != 1:
        raise _unsupported(
            model, f"a block has {len(attention)} attention and {len(mlp)} MLP modules"
        )
    hidden = model.config.hidden_size
    for part in (attention[0], mlp[0]):
        *readers, writer = (get_weight(part, name).shape for name in _linears(part))
        if writer[0] != hidden or not readers or any(shape[1] != hidden for shape in readers):
            raise _unsupported(
                model,
                f"{type(part).__name__} does not read the residual stream with all its linears "
                "but the last and write with the last",
            )
    return attention[0], mlp[0]


def _linears(module: nn.Module) -> list[str]:
    """Return the names of the linears inside a module, relative to it."""
    return [name for name, child in module.named_modules() if name and is_linear(child)]


def _sites(parts: Structure) -> Iterator[Site]:
    """Yield all sites in model order; a sub-block precedes its members."""
    yield _weight_site(parts, parts.embedding_name, "embedding")
    for block in range(len(parts.block_names)):
        for name in (parts.attention_name(block), parts.mlp_name(block)):
            members = parts.linears(name)
            yield Site(name, "subblock", name.rpartition(".")[2], block=block, members=members)
            for member in members[:-1]:
                yield _weight_site(parts, member, "linear", block, f"{name}.in")
            yield _weight_site(parts, members[-1], "linear", block, f"{members[-1]}.in")
    if parts.head_name is not None:
        yield _weight_site(parts, parts.head_name, "head", reads=f"{parts.head_name}.in")


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
        "dense decoders built like Llama, Mistral, Qwen2, Qwen3, SmolLM or GPT-2."
    )
