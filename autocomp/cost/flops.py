"""Floating-point operations of running a plan, from shapes alone; a multiply-add counts two.

Counted are matrix products: linears as they are stored, the head, attention scores and their
product with the values. Left out are norms, softmax, activations, rotary embeddings, biases and
what only decodes packed weights, so the bits of a weight change nothing. An embedding lookup is
none. Attention is taken over the whole context, a sliding window too.

Reference: Zhu et al. 2023, https://arxiv.org/abs/2308.07633, section 2.3.
"""

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost.bytes import is_bypassed, site_layout


def decode_flops(sketch: Sketch, plan: Plan, *, context: int) -> int:
    """Return the operations of decoding one token that attends to ``context``, itself included.

    ``Σ 2 · multiply_adds + Σ 4 · heads · head_dim · context + 2 · vocab · hidden``: over the
    linears and the attentions that the plan keeps, and the head. A dense linear has ``in · out``
    multiply-adds, a factorised one ``rank · (in + out)``, a pruned one those of what it keeps; a
    correction adds its own. Heads that share keys do not share this work.

    Args:
        sketch: The model, as its variant is cut.
        plan: The plan; bypassed sub-blocks do nothing.
        context: Tokens.

    Raises:
        PlanError: If a spec does not fit its site.
    """
    kept = (site.name for site in sketch.sites if not is_bypassed(sketch, plan, site.name))
    return sum(site_flops(sketch, name, plan[name], context=context) for name in kept)


def site_flops(sketch: Sketch, site: str, spec: LayerSpec, *, context: int) -> int:
    """Return the share of one site of :func:`decode_flops`.

    That of a cache is the work of its attention; that of a tied embedding is the head's, and a
    sub-block has none of its own.

    Args:
        sketch: The model, as its variant is cut.
        site: Name of a site.
        spec: What is done to it.
        context: Tokens.

    Raises:
        PlanError: If the spec does not fit the site.
    """
    kind = sketch[site].kind
    if kind == "cache":
        *_, output, _ = sketch[sketch.owner[site]].members
        return 4 * sketch[output].shape[1] * context
    if kind == "linear" or site == logits_site(sketch):
        return 2 * site_layout(sketch, site, spec).multiply_adds
    return 0


def prefill_flops(sketch: Sketch, plan: Plan, *, context: int) -> int:
    """Return the operations of reading ``context`` tokens at once and making one next token.

    As :func:`decode_flops`, with token t attending to t tokens:
    ``context · linears + 4 · heads · head_dim · context · (context + 1) / 2 + head``. Half of the
    square of scores is never needed; the logits are those of the last token.

    Args:
        sketch: The model, as its variant is cut.
        plan: The plan; bypassed sub-blocks do nothing.
        context: Tokens.

    Raises:
        PlanError: If a spec does not fit its site.
    """
    linears, attentions, head = 0, 0, 0
    for site in sketch.sites:
        if is_bypassed(sketch, plan, site.name):
            continue
        flops = site_flops(sketch, site.name, plan[site.name], context=1)
        if site.kind == "linear":
            linears += flops
        elif site.kind == "cache":
            attentions += flops
        else:
            head += flops
    return context * linears + attentions * (context * (context + 1) // 2) + head


def logits_site(sketch: Sketch) -> str:
    """Return the site that makes the logits: a head of its own, or the tied embedding."""
    tables = {site.kind: site.name for site in sketch.weights() if site.kind != "linear"}
    return tables.get("head", tables["embedding"])
