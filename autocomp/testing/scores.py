"""The contract that every score fulfils, as functions to call from any test runner.

:func:`scored` scores options of every kind on a model; the ``check_…`` functions raise
``AssertionError`` on a breach.
"""

import json
import math

import torch

from autocomp.core.progress import Silent
from autocomp.core.registry import SCORES
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.search.clock import Clock
from autocomp.search.objectives import KlObjective
from autocomp.search.scores.table import ScoreTable
from autocomp.search.scoring import score_options
from autocomp.search.workbench import Workbench

LINEAR = {
    "bits": "rtn-w3g16",
    "fewer bits": "rtn-w2g16",
    "mask": "wanda-2:4",
    "rank": "svd-r8",
    "residual": "rtn-w3g16+lorc-r4",
    "input": "smoothquant+rtn-w3g16",
    "activation": "rtn-w3g16-sym+absmax-a4",
}
"""An option of a linear of each kind, by the slot that it stands for."""

CACHE = ("kivi-k2v2g4r8", "kivi-k8v8g4r8")
ENDS = ("rtn-w2g16", "rtn-w4g16")


def options(bench: Workbench) -> dict[str, tuple[LayerSpec, ...]]:
    """Return options of every kind by site, dense among them."""
    tokens = {
        "linear": tuple(LINEAR.values()),
        "embedding": ENDS,
        "head": ENDS,
        "cache": CACHE,
        "subblock": ("bypass",),
    }
    return {
        site.name: (DENSE, *map(LayerSpec.parse, tokens[site.kind])) for site in bench.sketch.sites
    }


def scored(name: str, bench: Workbench) -> ScoreTable:
    """Return what a score says of options of every kind; the second time from the cache.

    Args:
        name: Name of the score.
        bench: Of a model with a head of its own whose weights are what their storage dtype holds,
            so that a dense option changes nothing.
    """
    return score_options(bench, options(bench), Silent(), Clock(), name, KlObjective(bench))


def check_described(name: str) -> None:
    """A summary, a reference and a version say what it is."""
    score = SCORES[name]
    assert score.summary
    assert score.reference.startswith("https://")
    assert isinstance(score.version, int)
    assert isinstance(score.in_nats, bool)


def check_every_kind(name: str, bench: Workbench) -> None:
    """Every option of every site has a finite number that is not negative."""
    table = scored(name, bench)
    kinds = {site.kind for site in bench.sketch.sites}
    assert kinds == {"linear", "embedding", "head", "cache", "subblock"}, kinds
    for site, specs in options(bench).items():
        values = (
            [table.drop[site]]
            if bench.sketch[site].kind == "subblock"
            else [table.options[site][spec.token()] for spec in specs]
        )
        assert all(math.isfinite(value) and value >= 0 for value in values), (site, values)
    assert table.score == name
    assert table.in_nats == SCORES[name].in_nats


def check_dense_costs_nothing(name: str, bench: Workbench) -> None:
    """The dense option of every site costs 0, and some option of every site more."""
    for site, values in scored(name, bench).options.items():
        assert values[DENSE.token()] == 0, (site, values)
        assert max(values.values()) > 0, (site, values)
    assert all(value > 0 for value in scored(name, bench).drop.values())


def check_coarser_costs_more(name: str, bench: Workbench) -> None:
    """Fewer bits cost more in sum over the sites of a kind, and so does rounding the input too."""
    table = scored(name, bench)

    def total(kind: str, token: str) -> float:
        sites = (site.name for site in bench.sketch.sites if site.kind == kind)
        return sum(table.options[site][token] for site in sites)

    for kind, (coarse, fine) in {
        "linear": (LINEAR["fewer bits"], LINEAR["bits"]),
        "embedding": ENDS,
        "head": ENDS,
        "cache": CACHE,
    }.items():
        assert total(kind, coarse) > total(kind, fine) > 0, kind
    assert total("linear", LINEAR["activation"]) > total("linear", LINEAR["bits"])


def check_pairs(name: str, bench: Workbench) -> None:
    """The pairs of each linear are symmetric and a sum of squares; no option but a weight's."""
    table = scored(name, bench)
    plain = {"dense", *LINEAR.values()} - {LINEAR["activation"]}
    linears = {site.name for site in bench.sketch.sites if site.kind == "linear"}
    assert table.pairs.keys() == linears
    for site, rows in table.pairs.items():
        assert rows.keys() == plain, site
        matrix = torch.tensor([list(row.values()) for row in rows.values()], dtype=torch.float64)
        assert torch.equal(matrix, matrix.T), site
        lowest, highest = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
        assert lowest >= -1e-4 * highest, site


def check_file(name: str, bench: Workbench) -> None:
    """The JSON form holds the whole table."""
    table = scored(name, bench)
    assert ScoreTable.from_json(json.loads(json.dumps(table.to_json()))) == table
