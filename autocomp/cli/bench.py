"""``autocomp bench``: how long operations and models take on this machine, kept as a table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from autocomp.cli.console import progress, say, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.core.errors import ConfigError
from autocomp.core.progress import Progress

if TYPE_CHECKING:
    from autocomp.core.spec import LayerSpec
    from autocomp.cost.times import ModelKey, Overhead
    from autocomp.evaluate.bench import Case, OpBench, Row
    from autocomp.evaluate.latency import FolderTime

SPECS = "rtn-w2g64,rtn-w3g64,rtn-w4g64,rtn-w4g64-sym,rtn-w6g64,rtn-w8g64,rtn-w8-sym"
LOCAL = "local"


@dataclass(frozen=True)
class What:
    """What is timed."""

    shapes: Annotated[
        str | None,
        Option(help="Linears by shape, in place of a model: smollm2,llama3-8b,4096x14336."),
    ] = None
    spec: Annotated[
        str | None,
        Option(help="Tokens, with commas; of a model the options of the default space."),
    ] = None
    batch: Annotated[str, Option(help="Sequences, with commas.")] = "1"
    context: Annotated[int, Option(help="Tokens a sequence.", min=2)] = 2048
    prefill: Annotated[bool, Option("--prefill", help="Reading the context too.")] = False
    ops_only: Annotated[
        bool, Option("--ops-only", help="No whole models, whose overhead searches need.")
    ] = False


@dataclass(frozen=True)
class Where:
    """On what, under which name, and how often."""

    name: Annotated[str, Option(help="Name of this machine, for --cost-device.")] = LOCAL
    calibrate: Annotated[
        bool, Option("--calibrate", help="Measure its bandwidth and peak, and write its file.")
    ] = False
    fresh: Annotated[bool, Option("--fresh", help="Drop what was measured before.")] = False
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[str, Option(help="Compute dtype: auto, float32, bfloat16.")] = "auto"
    repeats: Annotated[int, Option(help="Samples a case.", min=3)] = 15


def bench(
    what: What,
    where: Where,
    output: Output,
    model: Annotated[
        str | None,
        Argument(help="Hugging Face id, folder or smollm2-135m; a native folder is timed as is."),
    ] = None,
    out: Annotated[Path | None, Option(help="Also write the lines to a JSON file.")] = None,
) -> None:
    """Time packed weights at their shapes and batches, and the model around them.

    The medians fill the table of this machine, by which --times measured looks costs up. A native
    folder fills nothing: it is loaded, timed, and compared with what the table predicts.

    - `autocomp bench --calibrate`
    - `autocomp bench smollm2-135m --batch 1,16 --context 512`, then
      `autocomp search smollm2-135m --max-decode-ms 20 --times measured --cost-device local`
    - `autocomp bench best --context 512`
    - `autocomp bench --shapes smollm2,llama3-8b --spec gptq-w4g64,rtn-w8-sym --json`
    """
    if model is None and what.shapes is None and not where.calibrate:
        raise ConfigError("nothing to time: name a model, --shapes or --calibrate.")
    if model is not None and what.shapes is not None:
        raise ConfigError("a model has its shapes: give either the model or --shapes.")
    quiet_libraries()
    with progress(quiet=output.quiet) as listener:
        session = _Session(what, where, listener)
        if model is not None:
            session.time_source(model)
        elif what.shapes is not None:
            session.time_shapes(what.shapes)
    found = session.to_json()
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        say(f"wrote {out}")
    if output.json:
        show_json(found)
        return
    if session.lines:
        show(_table(session.lines))
    show(*session.facts())


class _Session:
    """One run of the bench, which saves its table after every step."""

    def __init__(self, what: What, where: Where, listener: Progress) -> None:
        from autocomp.cost.device import Device, device_names
        from autocomp.cost.times import TimeTable
        from autocomp.evaluate.bench import conditions
        from autocomp.evaluate.peaks import measure_peaks
        from autocomp.models.device import compute_dtype, resolve_device

        self.what, self.where, self.listener = what, where, listener
        self.device = resolve_device(where.device)
        self.dtype = compute_dtype(where.dtype, self.device)
        if where.calibrate or where.name not in device_names():
            listener.log(f"measuring the peaks of this machine as {where.name!r}")
            measure_peaks(self.device, self.dtype).save(where.name)
        self.peaks = Device.named(where.name)
        under = conditions(self.device, self.dtype)
        fresh = TimeTable(where.name, under)
        self.table = fresh if where.fresh else TimeTable.open(where.name, under)
        self.batches = _counts(what.batch)
        self.lines: list[Row] = []
        self.fitted: dict[ModelKey, Overhead] = {}
        self.folders: list[FolderTime] = []

    def time_shapes(self, names: str) -> None:
        """Time linears by shape."""
        from autocomp.core.spec import LayerSpec
        from autocomp.evaluate.bench import cases_of_shapes
        from autocomp.evaluate.forms import Forms

        specs = [LayerSpec.parse(token) for token in _texts(self.what.spec or SPECS)]
        shapes = [shape for name in _texts(names) for shape in _shapes(name)]
        forms = Forms("bfloat16")
        cases = cases_of_shapes(shapes, specs, self.batches, forms.dtype)
        self._run(self._bench(forms), cases)

    def time_source(self, source: str) -> None:
        """Time a native folder as it is, or fill the table with what a model needs."""
        from autocomp.layers.native import is_native

        if is_native(source):
            self.time_folder(Path(source))
        else:
            self.time_model(source)

    def time_folder(self, folder: Path) -> None:
        """Time the steps of a native folder."""
        from autocomp.cost.models import Workload
        from autocomp.evaluate.latency import time_folder

        for batch in self.batches:
            for phase in self.phases:
                work = Workload(self.what.context, batch, self.where.name)
                self.listener.start(f"{folder}, {phase} at batch {batch}")
                found = time_folder(
                    folder, work, phase, self.device, self.dtype, repeats=self.where.repeats
                )
                self.folders.append(found)
                self.listener.finish(f"{found.median_ms:.4g} ms")

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that were asked for."""
        from autocomp.cost.times import DECODE, PREFILL

        return (DECODE, PREFILL) if self.what.prefill else (DECODE,)

    def time_model(self, source: str) -> None:
        """Time the operations of a model, then whole models."""
        from autocomp.core.spec import LayerSpec
        from autocomp.cost.models import Workload
        from autocomp.cost.ops import model_key
        from autocomp.evaluate.bench import cases_of_model
        from autocomp.evaluate.forms import Forms
        from autocomp.evaluate.latency import ModelBench
        from autocomp.models import load, sketch_of

        sketch, what = sketch_of(source), self.what
        forms = Forms(sketch.dtype)
        given = [LayerSpec.parse(token) for token in _texts(what.spec or "")]
        specs = given or default_specs(sketch)
        linear = [spec for spec in specs if spec.cache is None]
        loaded = None if what.ops_only else load(source)
        for batch in self.batches:
            for phase in self.phases:
                work = Workload(what.context, batch, self.where.name)
                self._run(self._bench(forms), cases_of_model(sketch, specs, work, phase))
                if loaded is None:
                    continue
                self.listener.start(f"whole models, {phase} at batch {batch}")
                models = ModelBench(
                    loaded, self.device, self.dtype, forms, repeats=self.where.repeats
                )
                found = models.overhead(linear, self.table.times, work, phase)
                self.fitted[key := model_key(sketch, work, phase)] = found
                self.table = self.table.with_overhead(key, found)
                self.table.save()
                self.listener.finish(f"median error of the fit {found.error:.1%}")

    def _bench(self, forms: Any) -> "OpBench":
        from autocomp.evaluate.bench import OpBench

        return OpBench(self.device, self.dtype, forms, self.where.repeats)

    def _run(self, ops: "OpBench", cases: "list[Case]") -> None:
        """Time cases, keep their lines, and save the table as it grows."""
        from autocomp.evaluate.bench import rows_of

        self.listener.start("operations", len(cases), "case")
        for times in ops.run(cases):
            self.table = self.table.with_times(times)
            self.table.save()
            self.lines += rows_of(times, self.peaks)
            self.listener.advance(len(times))
        self.listener.finish()

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        from autocomp.cost.times import path_of

        return {
            "device": self.where.name,
            "peaks": asdict(self.peaks),
            "conditions": asdict(self.table.conditions),
            "table": str(path_of(self.where.name)) if self.lines else None,
            "rows": [line.to_json() for line in self.lines],
            "overheads": [asdict(key) | asdict(found) for key, found in self.fitted.items()],
            "models": [asdict(found) for found in self.folders],
        }

    def facts(self) -> list[str]:
        """Return what the figures depend on, as lines."""
        peaks = self.peaks
        lines = [
            f"{self.where.name}: {peaks.memory_bandwidth_bytes_per_s / 1e9:.4g} GB/s, "
            f"{peaks.peak_flops_per_s / 1e9:.4g} GFLOP/s ({peaks.source})",
            f"conditions: {self.table.conditions}",
        ]
        for timed in self.folders:
            predicted = "nothing predicted"
            if timed.predicted_ms is not None:
                predicted = f"predicted {timed.predicted_ms:.4g} ms ({timed.source})"
            lines.append(
                f"{timed.phase} at batch {timed.batch}, context {timed.context}: "
                f"{timed.median_ms:.4g} ms ± {timed.noise:.1%}, {predicted}"
            )
        for key, found in self.fitted.items():
            lines.append(
                f"{key.architecture}, {key.phase} at batch {key.batch}, context {key.context}: "
                f"operations × {found.scale:.3g} + {1e3 * found.fixed_s:.3g} ms + "
                f"{1e3 * found.attention_s:.3g} ms an attention + {1e3 * found.mlp_s:.3g} ms an "
                f"MLP; median error {found.error:.1%} of {found.runs} models"
            )
        return lines


def default_specs(sketch: Any) -> "list[LayerSpec]":
    """Return the options of the default space for a model: of weights and of embeddings."""
    from autocomp.core.registry import SPACES

    lists = SPACES["joint"].candidates(sketch, linear=None, embedding=None, bypass=False, cache=())
    found = {spec: None for options in lists.values() for spec in options}
    return sorted((spec for spec in found if spec.filled()), key=lambda spec: spec.token())


def _table(lines: "list[Row]") -> Table:
    table = Table(title="Operations", title_justify="left")
    for name in ("operation", "shape", "spec"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "ms", "± noise", "floor ms", "× floor", "× dense"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.op,
            "×".join(map(str, line.shape)),
            line.spec,
            str(line.rows),
            f"{line.median_ms:.4g}",
            f"{line.noise:.1%}",
            f"{line.floor_ms:.3g}",
            f"{line.over_floor:.3g}",
            f"{line.over_dense:.3g}",
        )
    return table


def _texts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in _texts(text)]
    except ValueError as error:
        raise ConfigError(f"--batch {text}: expected counts such as 1,16.") from error
    if not found or min(found) < 1:
        raise ConfigError(f"--batch {text}: expected counts of at least 1, such as 1,16.")
    return found


def _shapes(name: str) -> tuple[tuple[int, int], ...]:
    """Return the shapes of a known model, or the one of OUTxIN."""
    from autocomp.evaluate.bench import SHAPES

    if name in SHAPES:
        return SHAPES[name]
    rows, _, columns = name.partition("x")
    if not (rows.isdigit() and columns.isdigit() and min(int(rows), int(columns)) > 0):
        raise ConfigError(
            f"--shapes {name}: expected OUTxIN, such as 4096x14336, or one of {', '.join(SHAPES)}."
        )
    return ((int(rows), int(columns)),)
