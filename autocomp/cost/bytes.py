"""Exact bytes of a plan's weight file, from shapes alone."""

from collections.abc import Iterator
from typing import Any

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.sketch import Site, Sketch, TensorInfo
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.formats.base import Format
from autocomp.formats.io import file_nbytes, header_entry_bound

NATIVE_VERSION = 1
HEADER_PADDING = 7


def native_metadata(digest: str = "0" * 64) -> dict[str, Any]:
    """Return the metadata of a native weight file; its length does not depend on the plan.

    Args:
        digest: Sha256 of the tensors, 64 hexadecimal digits.
    """
    return {"native_version": NATIVE_VERSION, "sha256": digest}


def site_layout(sketch: Sketch, site: str, spec: LayerSpec) -> Format:
    """Return the format that ``spec`` gives the weight of ``site``.

    Raises:
        PlanError: If the spec does not fit the shape.
        UnsupportedError: If its methods do not go together.
    """
    layout: Format = load_object("autocomp.methods.compose:layout")(
        spec, sketch[site].shape, sketch.dtype
    )
    return layout


def is_bypassed(sketch: Sketch, plan: Plan, site: str) -> bool:
    """Return whether a linear lies in a sub-block that the plan bypasses: it has no tensors."""
    owner = sketch.owner.get(site)
    return owner is not None and plan[owner] != DENSE


def native_infos(sketch: Sketch, plan: Plan) -> dict[str, TensorInfo]:
    """Return every tensor of the native weight file: ``<site>.<local name>`` and the rest.

    A bypassed sub-block has no tensors: neither its linears nor its biases and inner norms.

    Raises:
        PlanError: If a spec does not fit its site, or the plan names a site that is not there.
        UnsupportedError: If the methods of a spec do not go together.
    """
    unknown = plan.layers.keys() - sketch.by_name.keys()
    if unknown:
        raise PlanError(
            f"the plan is for another model: {sketch.model} has no site {sorted(unknown)[0]!r}."
        )
    bypassed = [site for site in sketch.subblocks() if plan[site.name] != DENSE]
    gone = {name for site in bypassed for name, _ in _rest_inside(sketch, site)}
    infos: dict[str, TensorInfo] = {}
    for site in sketch.weights():
        if not is_bypassed(sketch, plan, site.name):
            infos.update(_site_infos(sketch, site.name, plan[site.name]))
    infos.update((name, info) for name, info in sketch.rest.items() if name not in gone)
    return infos


def weight_bytes(sketch: Sketch, plan: Plan) -> int:
    """Return the exact size of ``model.safetensors`` in bytes: header, alignment and data.

    Raises:
        PlanError: If a spec does not fit its site.
        UnsupportedError: If the methods of a spec do not go together.
    """
    return file_nbytes(native_infos(sketch, plan), native_metadata())


def site_bytes(sketch: Sketch, site: str, spec: LayerSpec) -> int:
    """Return an upper bound of the share of one site in the file, in bytes.

    For a linear, embedding or head: its tensors. For a cache: nothing. For a sub-block: the biases
    and norms inside it when it is kept, zero when it is bypassed (its members then cost nothing
    either), so that ``weight_bytes ≤ fixed_bytes + Σ site_bytes`` over the sites that a plan
    keeps.

    Raises:
        PlanError: If the spec does not fit the site.
        UnsupportedError: If its methods do not go together.
    """
    return _bound(_infos_of(sketch, site, spec))


def site_data_bytes(sketch: Sketch, site: str, spec: LayerSpec) -> int:
    """Return the bytes of the tensors of one site, as :func:`site_bytes` without their header.

    Raises:
        PlanError: If the spec does not fit the site.
        UnsupportedError: If its methods do not go together.
    """
    return sum(info.nbytes for info in _infos_of(sketch, site, spec).values())


def fixed_bytes(sketch: Sketch) -> int:
    """Return an upper bound of the bytes that no decision changes: norms, positions, header."""
    return file_nbytes({}, native_metadata()) + HEADER_PADDING + _bound(_fixed_infos(sketch))


def fixed_data_bytes(sketch: Sketch) -> int:
    """Return the bytes of the tensors that no decision changes: norms, positions."""
    return sum(info.nbytes for info in _fixed_infos(sketch).values())


def _fixed_infos(sketch: Sketch) -> dict[str, TensorInfo]:
    """Return the tensors that belong to no site and lie in no sub-block."""
    inside = {name for site in sketch.subblocks() for name, _ in _rest_inside(sketch, site)}
    return {name: info for name, info in sketch.rest.items() if name not in inside}


def _infos_of(sketch: Sketch, site: str, spec: LayerSpec) -> dict[str, TensorInfo]:
    """Return the tensors of a site of any kind; those of a sub-block are no weights of sites."""
    if sketch[site].kind == "cache":
        return {}
    if sketch[site].kind == "subblock":
        return dict(_rest_inside(sketch, sketch[site])) if spec == DENSE else {}
    return _site_infos(sketch, site, spec)


def _site_infos(sketch: Sketch, site: str, spec: LayerSpec) -> dict[str, TensorInfo]:
    """Return the tensors of one site under their names in the file."""
    tensors = site_layout(sketch, site, spec).tensors()
    return {f"{site}.{local}": info for local, info in tensors.items()}


def _rest_inside(sketch: Sketch, site: Site) -> Iterator[tuple[str, TensorInfo]]:
    """Iterate over the parameters inside a sub-block that are no site's weight."""
    inside = tuple(f"{name}." for name in (site.name, *site.members))
    for name, info in sketch.rest.items():
        if name.startswith(inside):
            yield name, info


def _bound(infos: dict[str, TensorInfo]) -> int:
    """Return data plus an upper bound of the header of some tensors."""
    return sum(info.nbytes + header_entry_bound(name, info) for name, info in infos.items())
