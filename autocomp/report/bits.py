"""Stored bits a weight, layer by layer: the picture of a plan."""

from dataclasses import dataclass

from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class BitsMap:
    """Bits a weight (scales, masks and factors included) by role and block.

    Args:
        roles: Rows: the linears of a block, in model order.
        blocks: Number of columns.
        bits: (roles, blocks); 0 where the sub-block is dropped, ``None`` where there is none.
        tokens: (roles, blocks), what the plan does there.
        outside: ``(site, token, bits)`` of embedding and head.
    """

    roles: tuple[str, ...]
    blocks: int
    bits: tuple[tuple[float | None, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    outside: tuple[tuple[str, str, float], ...]


def bits_map(sketch: Sketch, plan: Plan) -> BitsMap:
    """Return the stored bits a weight of every site of a plan: ``8 · bytes / (out · in)``."""
    linears = [site for site in sketch.weights() if site.block >= 0]
    roles = tuple(dict.fromkeys(site.role for site in linears))
    found = {(site.role, site.block): _site(sketch, plan, site) for site in linears}
    cells = [
        [found.get((role, block), ("", None)) for block in range(sketch.num_layers)]
        for role in roles
    ]
    return BitsMap(
        roles=roles,
        blocks=sketch.num_layers,
        bits=tuple(tuple(bits for _, bits in row) for row in cells),
        tokens=tuple(tuple(token for token, _ in row) for row in cells),
        outside=tuple(
            (site.name, *_site(sketch, plan, site)) for site in sketch.weights() if site.block < 0
        ),
    )


def _site(sketch: Sketch, plan: Plan, site: Site) -> tuple[str, float]:
    owner = sketch.owner.get(site.name)
    if owner is not None and plan[owner].structure is not None:
        return f"dropped with {owner}", 0.0
    spec: LayerSpec = plan[site.name]
    layout = load_object("autocomp.methods.compose:layout")(spec, site.shape, sketch.dtype)
    return spec.token(), 8 * layout.nbytes / (site.shape[0] * site.shape[1])
