"""What a search works with: the base model, its texts, the layer store, and one live candidate."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autocomp.calibrate.collect import Collect
from autocomp.calibrate.statistics import block_sites, input_statistics
from autocomp.calibrate.stream import CalibrationStream, EndStatistics
from autocomp.calibrate.walker import BlockWalker
from autocomp.config import StudyConfig
from autocomp.core.progress import Progress, Silent
from autocomp.core.recipe import CalibrationText
from autocomp.core.registry import load_object
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.core.variant import BASE
from autocomp.data import (
    Corpus,
    Split,
    Windows,
    interleave,
    load_corpus,
    recipe_windows,
    windows,
)
from autocomp.env import cache_dir
from autocomp.evaluate.body import batch_windows
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.ladder import Ladder
from autocomp.evaluate.reference import reference_of
from autocomp.formats.base import CompressedWeight, Operands
from autocomp.layers.apply import Candidate
from autocomp.layers.store import LayerStore, StoreKey
from autocomp.models import LoadedModel, load
from autocomp.models.device import body_dtype, memory_bytes, resolve_device
from autocomp.models.structure import structure
from autocomp.models.teacher import ModelTeacher
from autocomp.models.weights import get_weight
from autocomp.search.filling import fill

logger = logging.getLogger(__name__)

DENSE_CACHE_BYTES = 3e9
SAMPLE_TOKENS = 2048
KEPT_SHARE = 0.05

Options = Mapping[str, Sequence[LayerSpec]]

compress = load_object("autocomp.methods.compose:compress")
fit_input = load_object("autocomp.methods.compose:fit_input")
needs = load_object("autocomp.methods.compose:needs")
method_version = load_object("autocomp.methods.compose:version")
layout = load_object("autocomp.methods.compose:layout")


def reads_gradients(spec: LayerSpec) -> bool:
    """Return whether a spec is made from gradients, which only the dense base's pass has."""
    return Needs.SENSITIVITY in needs(spec)


def _single_threaded() -> None:
    """Give a worker one thread: solvers make small steps, and one thread count is one result."""
    torch.set_num_threads(1)


class Workbench:
    """Everything an evaluation needs, loaded once.

    Args:
        config: The study's configuration.
        progress: Told of the base's pass over a text, and of text that a data recipe writes.
    """

    variant: str = BASE

    def __init__(self, config: StudyConfig, progress: Progress | None = None) -> None:
        self.config = config
        self.progress = progress or Silent()
        self.device = resolve_device(config.device)
        self.dtype = body_dtype(self.device)
        self.seeds = SeedTree(config.seed)
        self.pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=_single_threaded)
        self.store = LayerStore(cache_dir() / "layers", max_bytes=config.store_bytes)
        # Loaded again, not cast: a cast would round the rotary frequencies to bf16 too.
        body = load(config.model, device=str(self.device), dtype=self.dtype).model
        self._hold(load(config.model), body)
        self.batch_size = batch_windows(self.sketch, config.data.window, self.device, self.dtype)

    def _hold(self, loaded: LoadedModel, body: PreTrainedModel) -> None:
        """Take a model: its original weights, and the body that becomes the candidates."""
        self.loaded = loaded
        self.sketch: Sketch = loaded.sketch
        self.model = body
        self.layout = structure(body)
        self.candidate = Candidate(body, self.sketch)
        self._dense: OrderedDict[tuple[str, str], Operands] = OrderedDict()
        self._dense_bytes = 0
        self._block_stats: tuple[int, dict[str, Stats]] = (-1, {})

    @cached_property
    def corpus(self) -> Corpus:
        """The study's text, in three parts."""
        return load_corpus(self.config.data.corpus)

    def windows(self, split: Split, tokens: int, *, fewer: bool = False) -> Windows:
        """Return fixed windows of one part of the text; ``fewer`` where it is too short."""
        return windows(
            self.corpus,
            split,
            self.loaded.tokenizer,
            tokens=tokens,
            length=self.config.data.window,
            fewer=fewer,
        )

    @cached_property
    def calibration(self) -> Windows:
        """Calibration windows: the corpus', those of a data recipe, or half of each."""
        data, tokenizer = self.config.data, self.loaded.tokenizer
        text = CalibrationText.parse(data.calibration)
        if text.recipe is None:
            return self.windows("calibration", data.calibration_tokens)
        written = data.calibration_tokens // (2 * data.window if text.mixed else data.window)
        found = recipe_windows(
            text.recipe,
            ModelTeacher(self.loaded, self.device, data.window),
            tokenizer,
            tokens=written * data.window,
            seed=self.config.seed,
            progress=self.progress,
        )
        if not text.mixed:
            return found
        rest = data.calibration_tokens - found.tokens
        return interleave(self.windows("calibration", rest), found, tokenizer)

    @cached_property
    def stats_digest(self) -> str:
        """Identifies what dense statistics are computed from."""
        parts = (
            self.loaded.digest,
            self.calibration.digest,
            str(self.dtype),
            self.device.type,
            str(self.batch_size),
        )
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]

    @cached_property
    def search_text(self) -> Windows:
        """Search windows; every prefix is spread over the text."""
        return self.windows("search", self.config.data.rungs[-1])

    @property
    def search_windows(self) -> Tensor:
        """Token ids of the search windows, (n, length)."""
        return self.search_text.input_ids

    @cached_property
    def ladder(self) -> Ladder:
        """The fidelity ladder over the search windows."""
        return Ladder.from_tokens(
            self.config.data.rungs, self.config.data.window, len(self.search_windows)
        )

    def meter(self, token_ids: Tensor, keep_bytes: int = 0) -> DivergenceMeter:
        """Return a meter against the dense base in fp32, its floor measured, on some windows.

        Args:
            token_ids: (n, length).
            keep_bytes: Limit of the hidden states kept for plans with the same first blocks.
        """
        self.candidate.restore()
        reference = reference_of(
            self.model, self._wide_model, token_ids, self.batch_size, self.progress
        )
        return DivergenceMeter(reference, self.model, keep_bytes=keep_bytes)

    def _wide_model(self) -> PreTrainedModel:
        """Load the base in fp32."""
        return load(self.config.model, device=str(self.device), dtype=torch.float32).model

    @cached_property
    def search_meter(self) -> DivergenceMeter:
        """The meter of the search text."""
        return self.meter(self.search_windows, int(KEPT_SHARE * memory_bytes(self.device)))

    @cached_property
    def heldout_meter(self) -> DivergenceMeter:
        """The meter of the held-out text."""
        return self.meter(self.windows("heldout", self.config.data.heldout_tokens).input_ids)

    def walker(self) -> BlockWalker:
        """Return a walker over the calibration windows on the live model."""
        return BlockWalker(self.layout, self.calibration.input_ids, self.batch_size)

    def weight(self, site: str) -> Tensor:
        """Return the original weight of a site, (out, in) fp32 on the compute device."""
        return get_weight(self.loaded.model, site).to(device=self.device, dtype=torch.float32)

    @cached_property
    def end_digest(self) -> str:
        """Identifies the statistics of embedding and head, which depend on the drawn labels."""
        return f"{self.stats_digest}-{self.config.seed}"

    def stream(
        self, options: Options | None = None, collect: Collect | None = None
    ) -> CalibrationStream:
        """Return the streamed calibration pass of the dense base.

        Args:
            options: Options by site; those of caches are scored in the pass.
            collect: What is kept for a score.
        """
        self.candidate.restore()
        caches = {
            name: specs
            for name, specs in (options or {}).items()
            if self.sketch[name].kind == "cache"
        }
        return CalibrationStream(
            self.walker(),
            self.sketch,
            self.seeds,
            self.stats_digest,
            SAMPLE_TOKENS,
            caches,
            collect,
        )

    def end_statistics(self, stream: CalibrationStream | None = None) -> EndStatistics:
        """Return the statistics of embedding and head, from the cache or from a pass.

        Args:
            stream: A pass that has ended; ``None`` runs one when the cache has nothing.
        """
        path = cache_dir() / "statistics" / f"{self.end_digest}.safetensors"
        if stream is None and (kept := EndStatistics.load(path)) is not None:
            return kept
        if stream is None:
            logger.info("recomputing the calibration pass for embedding and head")
            stream = self.stream()
            for _ in (*stream.forward(), *stream.backward()):
                continue
        if stream.end is None:
            raise RuntimeError("the calibration pass has not ended")
        stream.end.save(path)
        return stream.end

    def key(self, site: str, spec: LayerSpec) -> StoreKey:
        """Return the store key of a compressed weight made from dense statistics."""
        shape, inner = self.sketch[site].shape, self.sketch[site].kind == "linear"
        found = layout(spec, shape, self.sketch.dtype)
        return StoreKey(
            model_digest=self.loaded.digest,
            variant=self.variant,
            site=site,
            token=spec.token(),
            stats_digest=self.stats_digest if inner else self.end_digest,
            method_version=method_version(spec),
            format_version=f"{found.name}@{found.version}",
        )

    def compressed(
        self, site: str, spec: LayerSpec, stats: Stats | None = None
    ) -> CompressedWeight:
        """Return a site's compressed weight from the store, compressing on a miss.

        Args:
            site: Site name.
            spec: What to do.
            stats: Dense statistics when the caller has them; recomputed on a miss otherwise.
        """
        key = self.key(site, spec)
        found = self.store.get(key)
        if found is None and stats is None and reads_gradients(spec):
            self.compress_from_gradients({site: [spec]})
            found = self.store.get(key)
        if found is None:
            if stats is None and needs(spec):
                stats = self.dense_statistics(site)
            found = self.compress(site, spec, stats).result()
            self.store.put(key, found)
        return found

    def compress(
        self,
        site: str,
        spec: LayerSpec,
        stats: Stats | None,
        step: Mapping[str, Tensor] | None = None,
    ) -> Future[CompressedWeight]:
        """Compress a site on a worker thread, whatever the store holds.

        Args:
            site: Site name.
            spec: What to do.
            stats: Statistics of its input.
            step: Tensors of its input step; ``None`` fits them to this site.
        """
        return self.pool.submit(compress, self.weight(site), spec, stats, self.sketch.dtype, step)

    def fit_input(self, specs: Mapping[str, LayerSpec], stats: Stats | None) -> dict[str, Tensor]:
        """Return the tensors of one input step for sites, by name, that read the same input."""
        weights = [self.weight(site) for site in specs]
        job = self.pool.submit(fit_input, weights, list(specs.values()), stats)
        found: dict[str, Tensor] = job.result()
        return found

    def compress_from_gradients(self, lists: Options) -> None:
        """Fill the store with options that read gradients, by site, in one pass of the base."""
        missing = {
            site: [spec for spec in specs if not self.store.path(self.key(site, spec)).exists()]
            for site, specs in lists.items()
        }
        if not any(missing.values()):
            return
        state = self.candidate.plan
        stream = self.stream(collect=Collect(sensitivity=True))
        for _ in stream.forward():
            continue
        for block in stream.backward():
            wanted = missing.keys() & block.stats.keys()
            fill(self, {site: block.stats[site] for site in wanted}, missing)
        if state is not None:
            self.candidate.apply(state, self.operands)

    def dense_statistics(self, site: str) -> Stats:
        """Recompute the dense statistics that a site is compressed from (a rebuilt entry)."""
        block, kind = self.sketch[site].block, self.sketch[site].kind
        if kind != "linear":
            tied = all(other.kind != "head" for other in self.sketch.sites)
            return self.end_statistics().stats(kind, tied=tied, digest=self.end_digest)
        if self._block_stats[0] == block:
            return self._block_stats[1][site]
        logger.info("recomputing calibration statistics of block %d for %s", block, site)
        state = self.candidate.plan
        self.candidate.restore()
        walker = self.walker()
        inputs = next(batches for index, batches in walker.walk() if index == block)
        found = input_statistics(
            walker,
            inputs,
            block_sites(self.sketch, block),
            digest=self.stats_digest,
            sample_tokens=SAMPLE_TOKENS,
        )
        self._block_stats = (block, found)
        if state is not None:  # which may recompute those of other blocks
            self.candidate.apply(state, self.operands)
        return found[site]

    def operands(self, site: str, spec: LayerSpec) -> Operands:
        """Return what a site computes with, decoded to the compute dtype, (out, in), cached."""
        key = (site, spec.token())
        if key in self._dense:
            self._dense.move_to_end(key)
            return self._dense[key]
        weight, prepare = self.compressed(site, spec).to(self.device).operands()
        found = Operands(weight.to(self.dtype), prepare)
        self._dense[key] = found
        self._dense_bytes += found.weight.nbytes
        while self._dense_bytes > DENSE_CACHE_BYTES:
            _, dropped = self._dense.popitem(last=False)
            self._dense_bytes -= dropped.weight.nbytes
        return found

    def head_token(self, layers: Mapping[str, LayerSpec]) -> str:
        """Return the spec token of the head's weight in a plan."""
        names = [site.name for site in self.sketch.sites if site.kind in ("head", "embedding")]
        return layers[names[-1]].token() if names[-1] in layers else "dense"
