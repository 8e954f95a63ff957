"""What a named space is: default option tokens, and how they become lists for one model."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autocomp.core.errors import ConfigError, PlanError, UnsupportedError
from autocomp.core.registry import METHODS, load_object
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import DENSE, LayerSpec

SMALLEST_DEFAULT_GROUP = 8
CACHE_CONTEXT = 4096

EMBEDDING = (
    "gptq-w3g64",
    "gptq-w4g64",
    "gptq-w4g32",
    "gptq-w5g64",
    "gptq-w6g64",
    "rtn-w5g64",
    "rtn-w6g64",
    "rtn-w8g64",
    "dense",
)
"""Default options of an embedding or a head; in a small model it holds half of the bytes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Space:
    """A named search space: the option tokens it offers where the user gives none.

    Args:
        name: Key in ``SPACES`` and value of ``--space``.
        summary: One line for ``autocomp ls spaces``.
        linear: Option tokens of every decoder linear.
        embedding: Option tokens of the embedding and of an untied head.
        bypass: Whether attention and MLP sub-blocks may be dropped.
        cache: Option tokens of every key/value cache; empty keeps full precision.
    """

    name: str
    summary: str
    linear: tuple[str, ...]
    embedding: tuple[str, ...]
    bypass: bool
    cache: tuple[str, ...] = ()

    def candidates(
        self,
        sketch: Sketch,
        linear: Sequence[str] | None = None,
        embedding: Sequence[str] | None = None,
        bypass: bool | None = None,
        cache: Sequence[str] | None = (),
    ) -> dict[str, tuple[LayerSpec, ...]]:
        """Return the option list of every group of a model, smallest first.

        Options that the caller gives must fit every layer as written. Options that come from the
        defaults adapt to the model: a group size that does not divide a layer's inputs becomes the
        largest power of two that does (the whole row when that is below 8), and a default that
        still does not fit (a 2:4 pattern on 30 inputs) is left out with a logged warning.

        Args:
            sketch: The model.
            linear: Tokens for the linears; ``None`` takes the defaults.
            embedding: Tokens for embedding and untied head; ``None`` takes the defaults.
            bypass: Whether sub-blocks may be dropped; ``None`` takes the default.
            cache: Tokens for the caches; ``None`` takes the defaults, empty offers none.

        Returns:
            Lists by group name, which is the name of the group's first site. Weight groups are
            ordered by stored bytes, then token, caches by bytes at a context of 4,096. A sub-block
            that may be dropped has the list (keep, bypass); one that may not is absent, and so
            are caches without options.

        Raises:
            ConfigError: If a list is empty or names an unknown method.
            PlanError: If a given option cannot be read, or does not fit a layer, which the
                message names.
            UnsupportedError: If a given option is not meant for that kind of layer.
        """
        droppable = self.bypass if bypass is None else bypass
        caches = self.cache if cache is None else cache
        lists: dict[str, tuple[LayerSpec, ...]] = {}
        for group in sketch.groups:
            sites = [sketch[name] for name in group]
            if sites[0].kind == "subblock":
                if droppable:
                    lists[group[0]] = (DENSE, LayerSpec.parse("bypass"))
                continue
            if sites[0].kind == "cache":
                if caches:
                    lists[group[0]] = _cache_options(caches, sites[0], sketch.dtype)
                continue
            is_linear = sites[0].kind == "linear"
            given = linear if is_linear else embedding
            if given is None:
                specs = _fit_defaults(self.linear if is_linear else self.embedding, sites)
            else:
                specs = _check_given(given, sites, "linear" if is_linear else "embedding")
            lists[group[0]] = _by_bytes(specs, sites, sketch.dtype)
        return lists


def _check_given(tokens: Sequence[str], sites: Sequence[Site], field: str) -> set[LayerSpec]:
    """Return the options as the user wrote them, or say which layer refuses which."""
    if not tokens:
        raise ConfigError(
            f"the list of {field} options is empty; give at least one, or leave it out."
        )
    specs = {LayerSpec.parse(token) for token in tokens}
    for site in sites:
        for spec in specs:
            error = _misfit(spec, site)
            if error is not None:
                rows, columns = site.shape
                raise type(error)(
                    f"option {spec.token()!r} does not fit {site.name!r} "
                    f"({rows} x {columns}): {error}"
                ) from error
    return specs


def _fit_defaults(tokens: Sequence[str], sites: Sequence[Site]) -> set[LayerSpec]:
    """Return the default options adapted to the sites of a group."""
    specs: set[LayerSpec] = set()
    for token in tokens:
        spec = _adapt_group_size(LayerSpec.parse(token), sites)
        misfits = [(site, error) for site in sites if (error := _misfit(spec, site))]
        if misfits:
            site, error = misfits[0]
            logger.warning("default option %s left out for %s: %s", token, site.name, error)
        else:
            specs.add(spec)
    return specs


def _adapt_group_size(spec: LayerSpec, sites: Sequence[Site]) -> LayerSpec:
    """Lower a default's group size to a power of two that divides every site's inputs.

    Factorised layers choose their own group size a factor, so they pass unchanged.
    """
    size = getattr(spec.quantizer, "group_size", None)
    if size is None or spec.factor is not None:
        return spec
    divisor = math.gcd(size, *(site.shape[1] for site in sites))
    fitting = divisor if divisor >= SMALLEST_DEFAULT_GROUP else None
    return replace(spec, quantizer=replace(spec.quantizer, group_size=fitting))


def _misfit(spec: LayerSpec, site: Site) -> PlanError | UnsupportedError | None:
    """Return why an option does not fit a site, or ``None``."""
    try:
        load_object("autocomp.methods.compose:check")(spec, site.kind, site.shape)
    except (PlanError, UnsupportedError) as error:
        return error
    return None


def _cache_options(tokens: Sequence[str], site: Site, dtype: str) -> tuple[LayerSpec, ...]:
    """Return the options of a cache, smallest first."""
    specs = _check_given(tokens, [site], "cache")

    def key(spec: LayerSpec) -> tuple[float, str]:
        if spec == DENSE:
            return math.inf, ""
        method = METHODS[spec.cache.method]()
        return method.nbytes(spec.cache, site.shape, CACHE_CONTEXT, dtype), spec.token()

    return tuple(sorted(specs, key=key))


def _by_bytes(specs: set[LayerSpec], sites: Sequence[Site], dtype: str) -> tuple[LayerSpec, ...]:
    """Order options by the bytes they store for the whole group, then by token."""
    layout = load_object("autocomp.methods.compose:layout")

    def key(spec: LayerSpec) -> tuple[int, str]:
        return sum(layout(spec, site.shape, dtype).nbytes for site in sites), spec.token()

    return tuple(sorted(specs, key=key))
