"""Peak memory of running a plan, from shapes alone."""

from autocomp.core.plan import Plan
from autocomp.core.sketch import DTYPE_BYTES, Site, Sketch
from autocomp.core.spec import DENSE
from autocomp.cost.bytes import native_infos

LOGIT_BYTES = 4


def attentions(sketch: Sketch) -> tuple[Site, ...]:
    """Return the attention sub-block of every block: the first of each block's two."""
    first: dict[int, Site] = {}
    for site in sketch.subblocks():
        first.setdefault(site.block, site)
    return tuple(first.values())


def cache_bytes(sketch: Sketch, *, context: int, batch: int, cache_dtype_bytes: int = 2) -> int:
    """Return the key/value cache of *one* attention in bytes.

    ``2 · batch · context · kv_heads · head_dim · dtype``; a bypassed attention holds none.

    Args:
        sketch: The model.
        context: Tokens a sequence.
        batch: Sequences.
        cache_dtype_bytes: Bytes of a cached number.
    """
    return 2 * batch * context * sketch.num_kv_heads * sketch.head_dim * cache_dtype_bytes


def activation_bytes(sketch: Sketch, *, context: int, batch: int) -> int:
    """Return the activations of a prefill in bytes, the same for every plan.

    ``batch · context · (hidden + max over inputs (in + Σ out)) · dtype + batch · vocab · 4``: the
    residual stream, the widest set of linears that read one input together with that input and
    their outputs, and the logits of the last token in fp32. Attention is assumed not to store its
    (context, context) scores, as in PyTorch's fused kernels. No plan changes it.

    Args:
        sketch: The model.
        context: Tokens a sequence.
        batch: Sequences.
    """
    widths: dict[str, int] = {}
    for site in sketch.weights():
        if site.kind == "linear":
            out_features, in_features = site.shape
            widths[site.reads] = widths.get(site.reads, in_features) + out_features
    width = sketch.hidden_size + max(widths.values(), default=0)
    stream = batch * context * width * DTYPE_BYTES[sketch.dtype]
    return stream + batch * sketch.vocab_size * LOGIT_BYTES


def peak_memory_bytes(
    sketch: Sketch, plan: Plan, *, context: int, batch: int, cache_dtype_bytes: int = 2
) -> int:
    """Return weights + key/value cache + activations in bytes, for a run on packed weights.

    The weights count as they are stored. A runtime that decodes them once and keeps the copy, as
    ``autocomp.load`` does on a machine without packed kernels, needs the dense weights on top.

    Args:
        sketch: The model.
        plan: The plan; bypassed sub-blocks hold neither weights nor cache.
        context: Tokens a sequence.
        batch: Sequences.
        cache_dtype_bytes: Bytes of a cached number.

    Raises:
        PlanError: If a spec does not fit its site.
    """
    weights = sum(info.nbytes for info in native_infos(sketch, plan).values())
    kept = sum(plan[site.name] == DENSE for site in attentions(sketch))
    cache = kept * cache_bytes(
        sketch, context=context, batch=batch, cache_dtype_bytes=cache_dtype_bytes
    )
    return weights + cache + activation_bytes(sketch, context=context, batch=batch)
