"""The finish: what turns a chosen plan into the best model that its bytes allow.

A search compresses every site from the *dense* model's statistics, so that plans can be put
together from parts. A finished plan is compressed once more, block by block in model order, each
site from the inputs that it will really see: those that the already compressed sites in front of
it produce (Frantar et al. 2022, https://arxiv.org/abs/2210.17323, "true sequential": q/k/v, then
o, then gate/up, then down); with ``gptaq`` towards what the dense model gives there. Masks under
which the weights keep their values see their block as it was, as published (Sun et al. 2023,
https://arxiv.org/abs/2306.11695). Then a block method tunes the block's weights together, within
their formats, so that on those inputs it gives what the original block gives on its own.

The result is an artefact, a native folder in the study directory.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from autocomp.calibrate.statistics import block_sites, input_statistics
from autocomp.calibrate.walker import Batch, BlockWalker
from autocomp.core.finish import two_streams
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.registry import METHODS
from autocomp.core.sketch import Site
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.stats import Stats
from autocomp.cost.bytes import weight_bytes
from autocomp.formats.base import CompressedWeight
from autocomp.layers.native import write_native
from autocomp.models.attention import decode_attention
from autocomp.search.folding import folded, shared_step
from autocomp.search.tuning import BlockTuner
from autocomp.search.two_streams import DenseStream
from autocomp.search.workbench import SAMPLE_TOKENS, Workbench, needs, reads_gradients


def _only_masks(spec: LayerSpec) -> bool:
    """Return whether a spec prunes and changes nothing that it keeps."""
    slots = {part.slot for part in spec.filled()}
    return "mask" in slots <= {"mask", "refinement"} and not METHODS[spec.mask.method].adaptive


def _stages(bench: Workbench, block: int, plan: Plan) -> Iterator[list[Site]]:
    """Yield what is compressed together: all plain masks, then what reads one input, in order."""
    owner = bench.sketch.owner
    kept = [
        site
        for site in block_sites(bench.sketch, block)
        if plan[owner[site.name]] == DENSE and plan[site.name] != DENSE
    ]
    plain = [site for site in kept if _only_masks(plan[site.name])]
    if plain:
        yield plain
    rest = [site for site in kept if site not in plain]
    for _, stage in groupby(rest, key=lambda site: site.reads):
        yield list(stage)


def _surroundings(bench: Workbench, plan: Plan) -> dict[str, CompressedWeight]:
    """Put everything but the linears into the live model; return the weights that are done."""
    around = {
        site.name: plan[site.name] if site.kind != "linear" else DENSE
        for site in bench.sketch.sites
    }
    bench.candidate.apply(Plan(around), bench.operands)
    return {
        site.name: bench.compressed(site.name, plan[site.name])
        for site in bench.sketch.weights()
        if site.kind != "linear" or plan[site.name] == DENSE
    }


def _compress_stage(
    bench: Workbench,
    walker: BlockWalker,
    batches: list[Batch],
    plan: Plan,
    stage: list[Site],
    dense: Mapping[str, Sequence[Tensor]],
) -> dict[str, CompressedWeight]:
    """Compress linears from their inputs as they are now; those with input steps read one input.

    What a method makes from gradients it makes from those of the dense model. ``dense`` is what
    the dense model reads in this block where two streams are followed, else empty.
    """
    digest = f"{bench.stats_digest}+{plan.digest[:16]}"
    specs = {site.name: plan[site.name] for site in stage}
    made = {
        name: bench.compressed(name, spec) for name, spec in specs.items() if reads_gradients(spec)
    }
    rest = [site for site in stage if site.name not in made]
    if not rest:
        return made
    stats: dict[str, Stats] = {}
    if dense or any(needs(specs[site.name]) for site in rest):
        stats = input_statistics(
            walker, batches, rest, digest=digest, sample_tokens=SAMPLE_TOKENS, dense=dense
        )
    step = shared_step(bench, plan, rest[0], stats.get(rest[0].name))
    jobs = {
        site.name: bench.compress(site.name, specs[site.name], stats.get(site.name), step)
        for site in rest
    }
    return made | {name: job.result() for name, job in jobs.items()}


def _put(bench: Workbench, weights: Mapping[str, CompressedWeight]) -> None:
    """Let the live model compute with finished weights."""
    for name, weight in weights.items():
        bench.candidate.put(name, weight.operands())


def recompress(bench: Workbench, plan: Plan, progress: Progress) -> dict[str, CompressedWeight]:
    """Compress a plan block by block: sequentially, then tuned as ``search.finish`` says.

    Statistics and tuning see what the plan does in front, its compressed caches included. Leaves
    the live candidate restored to the base.

    Args:
        bench: The loaded base model.
        plan: What to make.
        progress: Told one unit a block.

    Returns:
        The compressed weight of every site that has tensors.
    """
    bench.candidate.restore()
    progress.start(f"finish ({bench.config.search.finish})", bench.sketch.num_layers, "block")
    try:
        from_gradients = {
            site.name: [plan[site.name]]
            for site in bench.sketch.weights()
            if reads_gradients(plan[site.name])
        }
        bench.compress_from_gradients(from_gradients)
        tuner = BlockTuner(bench, plan)
        twice = two_streams(bench.config.search.finish)
        exact = DenseStream(bench.walker()) if twice else None
        done = _surroundings(bench, plan)
        walker = bench.walker()
        with decode_attention(bench.model):
            for block, batches in walker.walk():
                made: dict[str, CompressedWeight] = {}
                sites = block_sites(bench.sketch, block)
                dense = {} if exact is None else exact.inputs(walker, block, sites)
                for stage in _stages(bench, block, plan):
                    compressed = _compress_stage(bench, walker, batches, plan, stage, dense)
                    _put(bench, compressed)
                    made |= compressed
                tuned = tuner.tune(walker, block, batches, made)
                _put(bench, tuned)
                done |= made | tuned
                progress.advance()
    finally:
        bench.candidate.restore()
    progress.finish()
    for site in bench.sketch.subblocks():
        if plan[site.name] != DENSE:
            for member in site.members:
                done.pop(member, None)
    return done


def write_artefact(
    bench: Workbench, plan: Plan, folder: Path, extra: dict[str, Any], progress: Progress
) -> Path:
    """Finish a plan into ``folder`` in native format and check its size against the prediction.

    The folder's plan says which input scales were folded; it may be smaller than the plan given.

    Raises:
        RuntimeError: If the file is not exactly as large as predicted.
    """
    weights = recompress(bench, plan, progress)
    plan, weights, rest = folded(bench, plan, weights)
    write_native(
        folder,
        plan=plan,
        sketch=bench.sketch,
        weights=weights,
        model=bench.loaded.model,
        rest=rest,
        tokenizer=bench.loaded.tokenizer,
        extra=extra,
    )
    size = (folder / "model.safetensors").stat().st_size
    if size != weight_bytes(bench.sketch, plan):
        raise RuntimeError(
            f"{folder}: the weight file has {size} bytes, predicted were "
            f"{weight_bytes(bench.sketch, plan)}. This is a defect of autocomp; please report it."
        )
    return folder
