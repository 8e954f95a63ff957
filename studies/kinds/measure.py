"""One method of every kind, uniformly: KL, bytes, memory and time, before any search.

``python studies/kinds/measure.py TEXT.txt`` makes one artefact a row on the reference model,
measures it on the held-out part of the text, exports it as ``native`` and ``hf``, and writes a row
to ``results/kinds.json``. Rows that are there are not measured again.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.errors import UnsupportedError
from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.cost.memory import peak_memory_bytes, plan_cache_bytes
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.record import versions
from autocomp.evaluate.reference import BaseReference
from autocomp.export import export_model
from autocomp.layers.native import load, native_sketch, read_plan
from autocomp.search.finish import write_artefact
from autocomp.search.variants import VariantBench
from autocomp.search.workbench import Workbench

MODEL = "smollm2-135m"
CONTEXT = 2048
OUT = Path(__file__).parent / "results" / "kinds.json"


@dataclass(frozen=True)
class Row:
    """A uniform plan: one token for all linears, one for all caches, a variant, a finish."""

    kind: str
    linear: str = "dense"
    cache: str = "dense"
    variant: str = BASE
    finish: str = "none"

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.variant}/{self.linear}/{self.cache}/{self.finish}"


ROWS = (
    Row("baseline", "gptq-w3g64"),
    Row("awq", "awq+gptq-w3g64"),
    Row("residual", "gptq-w3g64+lorc-r16-w8"),
    Row("w8a8", "rtn-w8-sym"),
    Row("w8a8", "rtn-w8-sym+absmax-a8"),
    Row("w8a8", "smoothquant+rtn-w8-sym+absmax-a8"),
    Row("cache", cache="kivi-k4v4"),
    Row("cache", cache="kivi-k2v2"),
    Row("variant", variant="flap-p80"),
    Row("rotation", "rotation-hadamard+gptq-w3g64"),
    Row("all", "awq+gptq-w4g64+lorc-r16-w8", cache="kivi-k4v4", variant="flap-p90"),
    Row("residual", "gptq-w3g64+lorc-r32-w8"),
    Row("block", "gptq-w3g64", finish="default"),
    Row("baseline", "rtn-w3g64"),
    Row("awq", "awq+rtn-w3g64-clip"),
    Row("w8a8", "smoothquant+rtn-w8-sym+absmax-a8-tensor"),
    Row("w8a8", "osplus+rtn-w8-sym+absmax-a8-tensor"),
    Row("w8a8", "rtn-w8-sym+absmax-a8-tensor"),
    Row("rotation", "rotation-orthogonal+gptq-w3g64"),
    Row("rotation", "rotation-hadamard+rtn-w3g64"),
    Row("residual", "gptq-w3g64+lorc-r8-w8"),
    Row("cache", cache="kivi-k8v8"),
    Row("variant", variant="flap-p90"),
    Row("variant", variant="wandawidth-p80"),
)


class Bench:
    """The loaded model, its variants and the text."""

    def __init__(self, arguments: argparse.Namespace, listener: Any) -> None:
        self.config = load_config(
            None,
            {
                "model": MODEL,
                "data.corpus": str(arguments.text),
                "data.calibration": "corpus",
                "data.window": arguments.window,
                "data.calibration_tokens": arguments.calibration,
                "data.heldout_tokens": arguments.tokens,
                "data.rungs": [arguments.window],
            },
        )
        self.listener = listener
        self.base = Workbench(self.config, listener)
        held = self.base.windows("heldout", arguments.tokens).input_ids
        self.meter = DivergenceMeter(BaseReference(self.base.model, held, self.base.batch_size))

    def of(self, row: Row) -> Workbench:
        """Return the workbench of a row's variant, its finish set."""
        bench = self.base
        if row.variant != BASE:
            bench = VariantBench(self.base, row.variant, self.listener)
        search = self.config.search
        if row.finish != "default":
            search = search.model_copy(update={"finish": row.finish})
        bench.config = self.config.model_copy(update={"search": search})
        return bench

    def measure(self, row: Row, folder: Path) -> dict[str, Any]:
        """Make, measure and export one artefact."""
        bench, begun = self.of(row), time.perf_counter()
        linear, cache = LayerSpec.parse(row.linear), LayerSpec.parse(row.cache)
        of_kind = {"linear": linear, "cache": cache}
        layers = {site.name: of_kind.get(site.kind, DENSE) for site in bench.sketch.sites}
        artefact = folder / "artefact"
        write_artefact(bench, Plan(layers, row.variant), artefact, {}, self.listener)
        seconds = time.perf_counter() - begun
        model = load(artefact, dtype=bench.dtype)
        count = len(self.meter.reference.windows)
        scores = self.meter.measure(model, range(count), head_token="dense")
        kl = np.asarray(scores.kl_nats)
        plan, sketch = read_plan(artefact), native_sketch(artefact)
        native = export_model(artefact, folder / "native")
        try:
            hf: float | str = export_model(artefact, folder / "hf", format="hf").kl_nats
        except UnsupportedError as error:
            hf = str(error).split(";")[0].split(",")[0]
        return {
            "row": row.name,
            "kind": row.kind,
            "finish": bench.config.search.finish,
            "kl_nats": round(float(kl.mean()), 5),
            "kl_se": round(float(kl.std(ddof=1) / np.sqrt(count)), 5),
            "perplexity": round(float(np.exp(np.mean(scores.nll_nats))), 3),
            "weight_bytes": (artefact / "model.safetensors").stat().st_size,
            "cache_bytes": plan_cache_bytes(sketch, plan, context=CONTEXT, batch=1),
            "peak_memory_bytes": peak_memory_bytes(sketch, plan, context=CONTEXT, batch=1),
            "folded": sum(getattr(spec.input, "folded", False) for spec in plan.layers.values()),
            "seconds": round(seconds, 1),
            "native_kl_nats": native.kl_nats,
            "hf": hf,
        }


def main() -> None:
    """Measure the rows that the result file does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=32768, help="of the evaluation")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens of calibration")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--kind", help="only rows of this kind")
    arguments = parser.parse_args()
    quiet_libraries()
    rows = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    done = {row["row"] for row in rows}
    wanted = [row for row in ROWS if row.name not in done and arguments.kind in (None, row.kind)]
    with progress(quiet=False) as listener:
        bench = Bench(arguments, listener)
        for row in wanted:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(bench.measure(row, Path(folder)))
            listener.log(json.dumps(rows[-1]))
            found = {
                "model": MODEL,
                "text": arguments.text.name,
                "tokens": arguments.tokens,
                "calibration_tokens": arguments.calibration,
                "window": arguments.window,
                "base_perplexity": float(np.exp(np.mean(bench.meter.reference.nll_nats()))),
                "versions": versions(),
                "rows": rows,
            }
            OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
