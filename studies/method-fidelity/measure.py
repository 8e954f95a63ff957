"""What each weight-only quantizer keeps of a model: KL, perplexity, stored bits, seconds.

``python studies/method-fidelity/measure.py TEXT.txt [ROW …]`` quantizes all linears of a model
uniformly, one row a token, from the same calibration windows, and measures the artefact on other
windows of the text. A token may end in ``@`` and a finish: ``gptq-w3g64@signround-100``. Embedding
and head stay as they are. Without rows all of ``ROWS`` are made. ``--export FOLDER`` writes model
and calibration windows for ``peer.py``; ``--peer FILE …`` measures what that made. Rows go to
``results/<model>.json`` one by one; those that it holds are not made again, and a file of other
settings is refused.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.record import hardware, versions
from autocomp.evaluate.reference import BaseReference
from autocomp.formats.io import save as save_tensors
from autocomp.layers.native import load
from autocomp.search.finish import write_artefact
from autocomp.search.workbench import Workbench, layout, method_version

RESULTS = Path(__file__).parent / "results"
ROWS = (
    "rtn-w{b}g{g}",
    "hqq-w{b}g{g}",
    "nf-w{b}",
    "lutgemm-w{b}g{g}",
    "lutgemm-w{b}g{g}-offset-weighted",
    "gptq-w{b}g{g}",
    "actorder+gptq-w{b}g{g}",
    "rotation-orthogonal+quip-w{b}-p1",
    "rotation-orthogonal-rescaled+quip-w{b}-p1-orthogonal",
    "owq-w{b}g{g}-t{b}.05",
    "spqr-w{b}-o1",
    "awq+rtn-w{b}g{g}-clip",
    "rotation-hadamard+gptq-w{b}g{g}",
    "gptq-w{b}g{g}@gptaq",
    "gptq-w{b}g{g}@signround-100",
    "squeezellm-w{b}",
    "squeezellm-w{b}-o0.45",
)
"""Rows at every width b, in groups of g inputs where a method has groups."""
WIDTHS = (4, 3, 2)
PEER = "peer:"
"""In front of the name of a row that a peer made."""


class Bench:
    """The loaded model, its calibration windows and the text that everything is measured on."""

    def __init__(self, arguments: argparse.Namespace, listener: Any) -> None:
        self.config = load_config(
            None,
            {
                "model": arguments.model,
                "data.corpus": str(arguments.text),
                "data.calibration": "corpus",
                "data.window": arguments.window,
                "data.calibration_tokens": arguments.calibration * arguments.window,
                "data.heldout_tokens": arguments.tokens,
                "data.rungs": [arguments.window],
            },
        )
        self.listener = listener
        self.bench = Workbench(self.config, listener)
        held = self.bench.windows("heldout", self.config.data.heldout_tokens)
        self.meter = DivergenceMeter(
            BaseReference(self.bench.model, held.input_ids, self.bench.batch_size)
        )
        self.settings = {
            "model": Path(arguments.model).name,
            "model_digest": self.bench.loaded.digest,
            "text": arguments.text.name,
            "window": arguments.window,
            "windows": len(held.input_ids),
            "calibration_windows": arguments.calibration,
            "heldout_digest": held.digest,
            "calibration_digest": self.bench.calibration.digest,
            "base_perplexity": round(math.exp(np.mean(self.meter.reference.nll_nats())), 4),
        }

    def export(self, folder: Path) -> None:
        """Write the model and the calibration windows (n, length) for a peer."""
        folder.mkdir(parents=True, exist_ok=True)
        self.bench.loaded.model.save_pretrained(folder / "model")
        self.bench.loaded.tokenizer.save_pretrained(folder / "model")
        ids = self.bench.calibration.input_ids.contiguous()
        save_tensors(folder / "windows.safetensors", {"input_ids": ids})

    def scores(self, model: Any) -> dict[str, Any]:
        """Return how far a model is from the base."""
        count = len(self.meter.reference.windows)
        scores = self.meter.measure(model, range(count), head_token="dense")
        kl = np.asarray(scores.kl_nats)
        return {
            "kl_nats": round(float(kl.mean()), 5),
            "kl_se": round(float(kl.std(ddof=1) / math.sqrt(count)), 5) if count > 1 else None,
            "perplexity": round(math.exp(np.mean(scores.nll_nats)), 4),
        }

    def peer(self, path: Path) -> dict[str, Any]:
        """Measure the parameters that a peer wrote, in our model."""
        model = self.bench.model
        with safe_open(path, "pt") as file, torch.no_grad():
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            kept = {name: model.get_parameter(name).clone() for name in file.keys()}  # noqa: SIM118
            for name in kept:
                model.get_parameter(name).copy_(file.get_tensor(name))
        scores = self.scores(model)
        with torch.no_grad():
            for name, value in kept.items():
                model.get_parameter(name).copy_(value)
        return facts | scores

    def measure(self, row: str, folder: Path) -> dict[str, Any]:
        """Make the artefact of a row and measure it."""
        token, _, finish = row.partition("@")
        spec, bench, sketch = LayerSpec.parse(token), self.bench, self.bench.sketch
        search = self.config.search.model_copy(update={"finish": finish or "none"})
        bench.config = self.config.model_copy(update={"search": search})
        linears = [site for site in sketch.sites if site.kind == "linear"]
        layers = {site.name: DENSE for site in sketch.sites}
        layers |= {site.name: spec for site in linears}
        begun = time.perf_counter()
        write_artefact(bench, Plan(layers), folder / "artefact", {}, self.listener)
        seconds = time.perf_counter() - begun
        scores = self.scores(load(folder / "artefact", dtype=bench.dtype))
        stored = sum(layout(spec, site.shape, sketch.dtype).nbytes for site in linears)
        weights = sum(site.shape[0] * site.shape[1] for site in linears)
        return {
            "row": row,
            "version": method_version(spec),
            **scores,
            "bits_a_weight": round(8 * stored / weights, 4),
            "weight_bytes": (folder / "artefact" / "model.safetensors").stat().st_size,
            "seconds": round(seconds, 1),
        }


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that a result file holds.

    Raises:
        ConfigError: If they were measured with other settings.
    """
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key, value in settings.items() if found["settings"].get(key) != value]
    if changed:
        raise ConfigError(
            f"{path} was measured with another {', '.join(changed)}: choose another --out."
        )
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def main() -> None:
    """Measure the rows that the result file does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("rows", nargs="*", help="all of ROWS at all widths without any")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--group", type=int, default=64, help="inputs of a group in ROWS")
    parser.add_argument("--tokens", type=int, default=32 * 1024, help="of the evaluation")
    parser.add_argument("--calibration", type=int, default=16, help="windows of calibration")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--export", type=Path, help="write a folder for peer.py and stop")
    parser.add_argument("--peer", type=Path, nargs="*", default=[], help="what peer.py wrote")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"{Path(arguments.model).name}.json"
    wanted = arguments.rows
    if not wanted and not arguments.peer:
        wanted = [row.format(b=width, g=arguments.group) for width in WIDTHS for row in ROWS]
    quiet_libraries()
    for row in wanted:
        LayerSpec.parse(row.partition("@")[0])
    with progress(quiet=False) as listener:
        bench = Bench(arguments, listener)
        if arguments.export:
            bench.export(arguments.export)
            return
        rows = read(out, bench.settings)
        done = {row["row"] for row in rows}
        theirs = {f"{PEER}{path.stem}": path for path in arguments.peer}
        for row in [row for row in (*theirs, *wanted) if row not in done]:
            if row in theirs:
                rows.append(bench.peer(theirs[row]) | {"row": row})
            else:
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(bench.measure(row, Path(folder)))
            listener.log(json.dumps(rows[-1]))
            found = {
                "settings": bench.settings,
                "versions": versions(),
                "hardware": hardware(bench.bench.device),
                "rows": rows,
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
