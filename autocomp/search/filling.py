"""Filling the layer store: options of one input are compressed together, a block is one file."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from autocomp.core.registry import load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats

if TYPE_CHECKING:
    from autocomp.search.workbench import Workbench

compress_together = load_object("autocomp.methods.compose:compress_together")
stacks = load_object("autocomp.methods.compose:stacks")

Choice = tuple[str, LayerSpec]
"""A site's name and what is done to it."""


def together(sketch: Sketch, choices: Sequence[Choice]) -> list[list[Choice]]:
    """Return the choices in stacks that are compressed in one call, the widest inputs first.

    Args:
        sketch: Shapes of the sites, and which read the same input.
        choices: What to compress; a stack reads one input.
    """

    def place(choice: Choice) -> tuple[int, str]:
        site = sketch[choice[0]]
        return -site.shape[1], site.reads

    found = []
    for _, readers in groupby(sorted(choices, key=place), key=place):
        group = list(readers)
        rows = [sketch[name].shape[0] for name, _ in group]
        for stack in stacks(rows, [spec for _, spec in group]):
            found.append([group[index] for index in stack])
    return found


def fill(
    bench: "Workbench", stats: Mapping[str, Stats], lists: Mapping[str, Sequence[LayerSpec]]
) -> None:
    """Put every option of some sites into the store, compressed by the bench's workers.

    Args:
        bench: The loaded base model and its store.
        stats: Dense statistics by site.
        lists: Options by site.
    """
    store, dtype = bench.store, bench.sketch.dtype
    missing = [
        (site, spec)
        for site in stats
        for spec in lists.get(site, ())
        if not store.path(bench.key(site, spec)).exists()
    ]
    jobs = []
    for stack in together(bench.sketch, missing):
        weights, specs = [bench.weight(site) for site, _ in stack], [spec for _, spec in stack]
        read = stats[stack[0][0]]
        jobs.append((bench.pool.submit(compress_together, weights, specs, read, dtype), stack))
    made = (zip(stack, job.result(), strict=True) for job, stack in jobs)
    store.put_all({bench.key(*choice): found for pairs in made for choice, found in pairs})
