"""The survey's efficiency figures: size, compression ratio, operations, times of a device."""

from dataclasses import replace
from pathlib import Path

from autocomp.core.cost import DECODE_MS, MIXED, MODELLED
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.registry import COSTS
from autocomp.core.sketch import Sketch
from autocomp.core.variant import BASE
from autocomp.cost import Roofline, Workload, cost_model, decode_flops, weight_bytes
from autocomp.evaluate.record import Efficiency, Speed
from autocomp.layers.native import is_native, native_sketch, read_plan
from autocomp.models import sketch_of

CONTEXT = 2048
"""Tokens that a decoded token attends to where nothing else is asked for."""


def efficiency(sketch: Sketch, plan: Plan, base_sketch: Sketch, *, context: int) -> Efficiency:
    """Return size and operations of a plan beside those of the uncompressed base.

    Sizes are those of native weight files, in which an uncompressed number has 16 bits.

    Args:
        sketch: The model, as its variant is cut.
        plan: What is done to it.
        base_sketch: The model that it was made from; its weights are dense.
        context: Tokens that a decoded token attends to.

    Raises:
        PlanError: If a spec does not fit its site.

    Reference: Zhu et al. 2023, https://arxiv.org/abs/2308.07633, section 2.3.
    """
    size, base_size = weight_bytes(sketch, plan), weight_bytes(base_sketch, Plan({}))
    return Efficiency(
        weight_bytes=size,
        base_weight_bytes=base_size,
        compression_ratio=base_size / size,
        flops_per_token=decode_flops(sketch, plan, context=context),
        base_flops_per_token=decode_flops(base_sketch, Plan({}), context=context),
        context=context,
    )


def speed(sketch: Sketch, plan: Plan, base_sketch: Sketch, workload: Workload) -> Speed:
    """Return the times of decoding a plan and its uncompressed base, and what they use.

    Times that a table of measurements lacks are modelled; the source says so.

    Args:
        sketch: The model, as its variant is cut.
        plan: What is done to it.
        base_sketch: The model that it was made from; its weights are dense.
        workload: Context, batch, device, and where times come from.

    Raises:
        ConfigError: If the device is unknown.
        PlanError: If a spec does not fit its site.
    """
    try:
        milliseconds, source = _decode_ms(sketch, plan, workload)
        base_ms, base_source = _decode_ms(base_sketch, Plan({}), workload)
    except ConfigError:
        if workload.times == MODELLED:
            raise
        return speed(sketch, plan, base_sketch, replace(workload, times=MODELLED))
    roofline: Roofline = COSTS[DECODE_MS](sketch, workload)
    attained = roofline.flops(plan) / (milliseconds / 1e3)
    return Speed(
        device=workload.device,
        batch=workload.batch,
        context=workload.context,
        source=source if source == base_source else MIXED,
        decode_ms=milliseconds,
        base_decode_ms=base_ms,
        speedup=base_ms / milliseconds,
        intensity=roofline.intensity(plan),
        flops_per_s=attained,
        mfu=attained / roofline.device.peak_flops_per_s,
    )


def _decode_ms(sketch: Sketch, plan: Plan, workload: Workload) -> tuple[float, str]:
    """Return the time of decoding a token of every sequence, and where it comes from."""
    model = cost_model(DECODE_MS, sketch, workload)
    return model.predict(plan) * model.tick, model.source_of(plan)


def efficiency_of_path(
    path: str,
    base: str | None = None,
    *,
    context: int = CONTEXT,
    workload: Workload | None = None,
) -> Efficiency | None:
    """Return the figures of a model from its config and plan; no weights are read.

    Args:
        path: Native or Hugging Face folder, or a model id. All but a native folder is dense, since
            nothing says what it was made from.
        base: The model that it was made from. Without one it is the model itself with dense
            weights.
        context: Tokens that a decoded token attends to.
        workload: What times are of; without one there are none.

    Returns:
        The figures; ``None`` for a model whose MLPs were cut and no base: the folder does not say
        how wide they were.

    Raises:
        ConfigError: If a source is unknown.
        StoreError: If a native folder is damaged.
        UnsupportedError: If a model is not a dense decoder that autocomp understands.
    """
    sketch = _sketch(path)
    plan = read_plan(Path(path)) if is_native(path) else Plan({})
    if base is None and plan.variant != BASE:
        return None
    origin = sketch if base is None else _sketch(base)
    found = efficiency(sketch, plan, origin, context=context)
    if workload is None:
        return found
    return replace(found, speed=speed(sketch, plan, origin, workload))


def _sketch(source: str) -> Sketch:
    """Return the sketch of a native folder or of whatever transformers loads."""
    return native_sketch(Path(source)) if is_native(source) else sketch_of(source)
