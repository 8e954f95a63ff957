"""Floating-point operations of running a plan, from shapes alone; a multiply-add counts two.

Counted are matrix products: linears as they are stored, the head, attention scores and their
product with the values. Left out are norms, softmax, activations, rotary embeddings, biases and
what only decodes packed weights, so the bits of a weight change nothing. An embedding lookup is
none. Attention is taken over the whole context, a sliding window too.

Reference: Zhu et al. 2023, https://arxiv.org/abs/2308.07633, section 2.3.
"""

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
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
    body = _linear_flops(sketch, plan) + _attention_flops(sketch, plan) * context
    return body + _head_flops(sketch, plan)


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
    attended = context * (context + 1) // 2
    body = context * _linear_flops(sketch, plan) + _attention_flops(sketch, plan) * attended
    return body + _head_flops(sketch, plan)


def _site_flops(sketch: Sketch, plan: Plan, site: str) -> int:
    """Return the operations of one input vector and the weight of a site."""
    return 2 * site_layout(sketch, site, plan[site]).multiply_adds


def _linear_flops(sketch: Sketch, plan: Plan) -> int:
    """Return the operations of all linears of the blocks, a token."""
    return sum(
        _site_flops(sketch, plan, site.name)
        for site in sketch.weights()
        if site.kind == "linear" and not is_bypassed(sketch, plan, site.name)
    )


def _attention_flops(sketch: Sketch, plan: Plan) -> int:
    """Return the operations of scores and values of all attentions, a query and a key.

    ``heads · head_dim`` is what the attention's output linear reads.
    """
    total = 0
    for cache in sketch.caches():
        if not is_bypassed(sketch, plan, cache.name):
            *_, output, _ = sketch[sketch.owner[cache.name]].members
            total += 4 * sketch[output].shape[1]
    return total


def _head_flops(sketch: Sketch, plan: Plan) -> int:
    """Return the operations of the logits of one token, with a head of its own or a tied one."""
    tables = {site.kind: site.name for site in sketch.weights() if site.kind != "linear"}
    return _site_flops(sketch, plan, tables.get("head", tables["embedding"]))
