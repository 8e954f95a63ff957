"""A searched plan behind the finish against what auto-round and AutoScheme make of the same bytes.

All three tune on the same windows, in as many steps, and are measured by one meter on held-out
text. ``python measure.py windows CORPUS FOLDER`` writes the calibration windows for the peers;
``PEER_PYTHON peer.py …`` runs a peer; ``python measure.py run CORPUS OUT.json --bits 3 --plan
PLAN.json --peer NAME=FILE.safetensors …`` measures all. A plan is the best that a search left, as
JSON; without one a uniform plan is finished.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import site_data_bytes
from autocomp.data.windows import windows_of
from autocomp.evaluate.intervals import paired
from autocomp.evaluate.record import hardware, versions
from autocomp.formats.io import save as save_tensors
from autocomp.layers.native import load
from autocomp.models.weights import set_weight
from autocomp.search.finish import write_artefact
from autocomp.search.workbench import Workbench

TUNED = 512
"""Tokens a window that is tuned on, as the peers' runs have them."""


def workbench(asked: argparse.Namespace, listener: Any) -> Workbench:
    """Return the model and its texts: the corpus in three parts, as a search cuts it."""
    options = {
        "model": asked.model,
        "data.corpus": str(asked.corpus),
        "data.calibration": "corpus",
        "data.heldout_tokens": asked.heldout_tokens,
        "search.finish": asked.finish,
    }
    return Workbench(load_config(None, options), listener)


def write_windows(bench: Workbench, folder: Path) -> None:
    """Write the calibration windows, (n, 512), for the peers."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = bench.calibration.input_ids.reshape(-1, TUNED)
    save_tensors(folder / "windows.safetensors", {"input_ids": ids})


def mean_bits(bench: Workbench, plan: Plan) -> float:
    """Return the stored bits a weight of the linears, grids included."""
    linears = [site for site in bench.sketch.sites if site.kind == "linear"]
    size = sum(site_data_bytes(bench.sketch, site.name, plan[site.name]) for site in linears)
    return 8 * size / sum(bench.weight(site.name).numel() for site in linears)


def kl_of(bench: Workbench, model: Any) -> list[float]:
    """Return the KL of each held-out window to the base, nats a token."""
    meter = bench.heldout_meter
    windows = range(len(meter.reference.windows))
    return list(meter.measure(model, windows, head_token="dense").kl_nats)


def ours(bench: Workbench, plan: Plan, listener: Any) -> Mapping[str, Any]:
    """Return what a plan gives behind the finish, measured from its file."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        write_artefact(bench, plan, Path(folder) / "made", {}, listener)
        seconds = time.process_time() - begun
        kl = kl_of(bench, load(Path(folder) / "made", dtype=bench.dtype))
    return {"kl": kl, "true_bits": mean_bits(bench, plan), "cpu_s": seconds}


def peer(bench: Workbench, path: Path) -> Mapping[str, Any]:
    """Return what the weights give that a peer wrote, in our model."""
    linears = [site.name for site in bench.sketch.sites if site.kind == "linear"]
    kept = {name: bench.weight(name) for name in linears}
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for name in kept:
            set_weight(bench.model, name, file.get_tensor(f"{name}.weight").to(bench.dtype))
    kl = kl_of(bench, bench.model)
    for name, weight in kept.items():
        set_weight(bench.model, name, weight.to(bench.dtype))
    return {"kl": kl, **facts}


def uniform(bench: Workbench, bits: int) -> Plan:
    """Return the plan of GPTQ codes of so many bits in groups of 64 in every linear."""
    linear = LayerSpec.parse(f"gptq-w{bits}g64")
    sites = bench.sketch.sites
    return Plan({site.name: linear if site.kind == "linear" else DENSE for site in sites})


def run(asked: argparse.Namespace, bench: Workbench, listener: Any) -> None:
    """Measure what the result file does not hold yet, and print its ratios."""
    found = json.loads(asked.out.read_text("utf-8")) if asked.out.exists() else {"rows": {}}
    rows = found["rows"]
    given = windows_of(
        bench.calibration.input_ids.reshape(-1, TUNED),
        bench.loaded.tokenizer,
        "given",
        "calibration",
    )
    bench.__dict__["calibration"] = given  # the same windows as the peers', cut as theirs are
    _ = bench.heldout_meter  # made while the model is the base

    def keep(name: str, row: Mapping[str, Any]) -> None:
        rows[name] = {"kl_nats": float(np.mean(row["kl"])), **row}
        found.update(
            {
                "model": asked.model,
                "corpus": asked.corpus.name,
                "finish": asked.finish,
                "versions": versions(),
                "hardware": hardware(bench.device),
            }
        )
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for word in asked.peer:
        name, _, path = word.partition("=")
        if name not in rows:
            keep(name, peer(bench, Path(path)))
    for path in asked.plan:
        plan = Plan.from_json(json.loads(path.read_text("utf-8")))
        if path.stem not in rows:
            keep(path.stem, ours(bench, plan, listener))
    if asked.bits and f"uniform-{asked.bits}" not in rows:
        keep(f"uniform-{asked.bits}", ours(bench, uniform(bench, asked.bits), listener))
    for name, row in rows.items():
        print(name, f"{row['true_bits']:.3f} bits, KL {row['kl_nats']:.4f}")
        for other, theirs in rows.items():
            if other != name:
                pair = paired(row["kl"], theirs["kl"])
                ratios = [
                    1 + x / theirs["kl_nats"] for x in (pair.difference, pair.low, pair.high)
                ]
                print(f"  over {other}: {ratios[0]:.3f} [{ratios[1]:.3f}, {ratios[2]:.3f}]")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="do", required=True)
    for name in ("windows", "run"):
        command = commands.add_parser(name)
        command.add_argument("corpus", type=Path)
        command.add_argument("out", type=Path, help="a folder, or the result file")
        command.add_argument("--model", default="smollm2-135m")
        command.add_argument("--finish", default="signround-25")
        command.add_argument("--heldout-tokens", type=int, default=16_384)
        command.add_argument("--bits", type=int, help="finish a uniform plan too")
        command.add_argument("--plan", type=Path, nargs="*", default=[])
        command.add_argument("--peer", nargs="*", default=[], help="NAME=FILE.safetensors")
    asked = parser.parse_args()
    quiet_libraries()
    with progress(quiet=False) as listener:
        bench = workbench(asked, listener)
        if asked.do == "windows":
            write_windows(bench, asked.out)
        else:
            run(asked, bench, listener)


if __name__ == "__main__":
    main()
