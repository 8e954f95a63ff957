"""Peak memory of running a plan, from shapes alone."""

from autocomp.core.plan import Plan
from autocomp.core.registry import METHODS
from autocomp.core.sketch import DTYPE_BYTES, Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import is_bypassed, native_infos

LOGIT_BYTES = 4
DECODED_AT_ONCE = 1 << 20
"""Weights that a kernel without packed products decodes at a time."""
DECODED_BYTES = 7
"""Of one of them, at most at once: fp32, its code, and the words that codes are parted in."""


def cache_bytes(sketch: Sketch, site: str, spec: LayerSpec, *, context: int, batch: int) -> int:
    """Return the keys and values of one attention in bytes.

    ``2 · batch · context · kv_heads · head_dim · dtype`` at full precision, else what the method
    stores; a bypassed attention holds none.

    Args:
        sketch: The model.
        site: Name of a cache site.
        spec: What is done to it; dense is full precision, 16 bits a number.
        context: Tokens a sequence.
        batch: Sequences.
    """
    shape = sketch[site].shape
    if spec == DENSE:
        return 2 * batch * context * shape[0] * shape[1] * DTYPE_BYTES[sketch.dtype]
    method = METHODS[spec.cache.method]()
    return batch * int(method.nbytes(spec.cache, shape, context, sketch.dtype))


def plan_cache_bytes(sketch: Sketch, plan: Plan, *, context: int, batch: int) -> int:
    """Return the keys and values of all attentions that a plan keeps, in bytes."""
    return sum(
        cache_bytes(sketch, site.name, plan[site.name], context=context, batch=batch)
        for site in sketch.caches()
        if not is_bypassed(sketch, plan, site.name)
    )


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


def workspace_bytes(sketch: Sketch) -> int:
    """Return what decoding packed weights takes in bytes, the same for every plan.

    ``7 · min(2^20, the largest weight)``: a block of rows of a weight, decoded and forgotten.
    Formats without a product of their own decode a whole weight; hardware that multiplies codes
    needs nothing.
    """
    largest = max(site.shape[0] * site.shape[1] for site in sketch.weights())
    return DECODED_BYTES * min(DECODED_AT_ONCE, largest)


def peak_memory_bytes(sketch: Sketch, plan: Plan, *, context: int, batch: int) -> int:
    """Return weights + key/value cache + activations + workspace in bytes.

    The weights count as they are stored: ``autocomp.load`` keeps them packed. Its memory policy
    ``decoded`` needs the dense weights on top.

    Args:
        sketch: The model.
        plan: The plan; bypassed sub-blocks hold neither weights nor cache.
        context: Tokens a sequence.
        batch: Sequences.

    Raises:
        PlanError: If a spec does not fit its site.
    """
    weights = sum(info.nbytes for info in native_infos(sketch, plan).values())
    cache = plan_cache_bytes(sketch, plan, context=context, batch=batch)
    running = activation_bytes(sketch, context=context, batch=batch) + workspace_bytes(sketch)
    return weights + cache + running
