"""Which operations a plan's site runs: what is timed alone, and what a model's time is made of."""

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import is_bypassed, site_layout
from autocomp.cost.flops import logits_site
from autocomp.cost.models import Workload
from autocomp.cost.times import EMBEDDING, LINEAR, PREFILL, TIED_HEAD, ModelKey, OpKey, form_of


def site_ops(
    sketch: Sketch, site: str, spec: LayerSpec, workload: Workload, phase: str
) -> tuple[OpKey, ...]:
    """Return the operations of one site; none for a sub-block, whose members have them.

    Args:
        sketch: The model, as its variant is cut.
        site: Name of a site.
        spec: What is done to it.
        workload: Context and batch.
        phase: ``decode`` or ``prefill``.

    Raises:
        PlanError: If the spec does not fit the site.
    """
    found, batch = sketch[site], workload.batch
    rows = batch * workload.context if phase == PREFILL else batch
    if found.kind == "subblock":
        return ()
    if found.kind == "cache":
        *_, output, _ = sketch[sketch.owner[site]].members
        kv_heads, width = found.shape
        shape = (sketch[output].shape[1] // width, kv_heads, width)
        return (OpKey(f"{phase}-attention", shape, spec.token(), rows, workload.context),)
    form = form_of(site_layout(sketch, site, spec).to_json())
    if found.kind == "linear":
        return (OpKey(LINEAR, found.shape, form, rows),)
    if found.kind == "head":
        return (OpKey(LINEAR, found.shape, form, batch),)
    looked_up = OpKey(EMBEDDING, found.shape, form, rows)
    if site != logits_site(sketch):
        return (looked_up,)
    return looked_up, OpKey(TIED_HEAD, found.shape, form, batch)


def plan_ops(
    sketch: Sketch, plan: Plan, workload: Workload, phase: str
) -> tuple[list[OpKey], int, int]:
    """Return the operations of a plan, and how many attentions and MLPs it keeps.

    Args:
        sketch: The model, as its variant is cut.
        plan: The plan.
        workload: Context and batch.
        phase: ``decode`` or ``prefill``.
    """
    ops: list[OpKey] = []
    for site in sketch.sites:
        if not is_bypassed(sketch, plan, site.name):
            ops += site_ops(sketch, site.name, plan[site.name], workload, phase)
    kept = [is_attention(sketch, s.name) for s in sketch.subblocks() if plan[s.name] == DENSE]
    return ops, sum(kept), len(kept) - sum(kept)


def is_attention(sketch: Sketch, subblock: str) -> bool:
    """Return whether a sub-block is an attention: it has a cache."""
    return any(sketch[name].kind == "cache" for name in sketch[subblock].members)


def model_key(sketch: Sketch, workload: Workload, phase: str) -> ModelKey:
    """Return what the overhead of a model is known by."""
    architecture = f"{sketch.family}-{sketch.hidden_size}"
    return ModelKey(architecture, phase, workload.batch, workload.context)
