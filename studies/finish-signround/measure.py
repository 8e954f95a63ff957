"""Our finish and auto-round on the same windows, steps and grids, measured by one meter.

python measure.py TEXT WINDOWS.safetensors --bits 3 --peer PEER.safetensors
"""

import argparse
import json
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
from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.data.windows import windows_of
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.record import versions
from autocomp.evaluate.reference import BaseReference
from autocomp.formats.io import load as load_tensors
from autocomp.formats.io import save as save_tensors
from autocomp.layers.native import load
from autocomp.models import load as load_model
from autocomp.models.weights import set_weight
from autocomp.search.finish import write_artefact
from autocomp.search.workbench import Workbench

MODEL = "smollm2-135m"
WINDOW = 1024
WINDOWS = 32
CALIBRATION = (32, 512)
OUT = Path(__file__).parent / "results"


def write_windows(text: Path, path: Path) -> None:
    """Write 32 evenly spread windows of 512 tokens of a text, for the peer and for us."""
    ids = load_model(MODEL).tokenizer(text.read_text("utf-8"), verbose=False)["input_ids"]
    stride = len(ids) // CALIBRATION[0]
    rows = [ids[i * stride : i * stride + CALIBRATION[1]] for i in range(CALIBRATION[0])]
    save_tensors(path, {"input_ids": torch.tensor(rows)})


def held_out(bench: Workbench, text: Path) -> torch.Tensor:
    """Return the first windows of a text, (32, 1024)."""
    ids = bench.loaded.tokenizer(text.read_text("utf-8"), verbose=False)["input_ids"]
    return torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


def scores(meter: DivergenceMeter, model: Any) -> dict[str, Any]:
    """Return the KL of a model to the base."""
    kl = np.asarray(meter.measure(model, range(WINDOWS), head_token="dense").kl_nats)
    error = kl.std(ddof=1) / np.sqrt(len(kl))
    return {"kl_nats": float(kl.mean()), "kl_se": float(error), "window_kl": kl.tolist()}


def ours(bench: Workbench, meter: DivergenceMeter, bits: int, finish: str, listener: Any) -> Any:
    """Return KL, bytes and time of a uniform plan with a finish."""
    search = bench.config.search.model_copy(update={"finish": finish})
    bench.config = bench.config.model_copy(update={"search": search})
    linear = LayerSpec.parse(f"gptq-w{bits}g64")
    sites = bench.sketch.sites
    plan = Plan({site.name: linear if site.kind == "linear" else DENSE for site in sites})
    with tempfile.TemporaryDirectory() as folder:
        begun, cpu = time.perf_counter(), time.process_time()
        write_artefact(bench, plan, Path(folder) / "made", {}, listener)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        size = (Path(folder) / "made" / "model.safetensors").stat().st_size
        found = scores(meter, load(Path(folder) / "made", dtype=bench.dtype))
    return {"finish": finish, **found, "weight_bytes": size, "seconds": seconds, "cpu_s": cpu}


def peer(bench: Workbench, meter: DivergenceMeter, path: Path) -> Any:
    """Return the KL of the weights that auto-round wrote, in our model."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        bench.candidate.restore()
        kept = {}
        for site in bench.sketch.sites:
            if site.kind == "linear":
                kept[site.name] = bench.weight(site.name)
                weight = file.get_tensor(f"{site.name}.weight")
                set_weight(bench.model, site.name, weight.to(bench.dtype))
    found = scores(meter, bench.model)
    for name, weight in kept.items():
        set_weight(bench.model, name, weight.to(bench.dtype))
    return {"finish": f"auto-round {facts['versions']['auto-round']}", **found, **facts}


def main() -> None:
    """Measure the peer's weights, if given, and ours with every finish that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("windows", type=Path, help="input_ids (n, length) int64")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--cut", type=Path, help="write WINDOWS from this text first")
    parser.add_argument("--finish", nargs="*", default=["none", "signround-25"])
    asked = parser.parse_args()
    quiet_libraries()
    if asked.cut:
        write_windows(asked.cut, asked.windows)
    path = OUT / f"uniform-{asked.bits}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {row["finish"] for row in rows}
    with progress(quiet=False) as listener:
        bench = Workbench(load_config(None, {"model": MODEL}), listener)
        windows = load_tensors(asked.windows)[0]["input_ids"]
        given = windows_of(windows, bench.loaded.tokenizer, "given", "calibration")
        bench.__dict__["calibration"] = given  # in place of the study's own
        meter = DivergenceMeter(BaseReference(bench.model, held_out(bench, asked.text), 2))
        if asked.peer and not any(name.startswith("auto-round") for name in done):
            rows.append(peer(bench, meter, asked.peer))
        rows += [
            ours(bench, meter, asked.bits, finish, listener)
            for finish in asked.finish
            if finish not in done
        ]
    for row in rows:
        print(row["finish"], round(row["kl_nats"], 4), "±", round(row["kl_se"], 4))
    settings = {"model": MODEL, "text": asked.text.name, "calibration": list(windows.shape)}
    OUT.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(
            {**settings, "bits": asked.bits, "versions": versions(), "rows": rows}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
