"""What the calibration text changes: source, amount and seed, for GPTQ, SparseGPT and SignRound.

``python studies/calibration-text/measure.py CORPUS`` compresses the reference model uniformly with
each method from each text and measures the KL on the held-out part of ``CORPUS`` and of ``pydoc``.
Every run adds its rows to ``results/measured.json``; rows that are there are not measured again.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.recipe import CalibrationText
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.data import Windows, interleave, load_corpus, recipe_windows, windows
from autocomp.data.windows import windows_of
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.record import versions
from autocomp.evaluate.reference import BaseReference
from autocomp.layers.native import load as load_native
from autocomp.models import load
from autocomp.models.device import body_dtype
from autocomp.models.teacher import ModelTeacher
from autocomp.search.finish import write_artefact
from autocomp.search.workbench import Workbench

MODEL = "smollm2-135m"
AWAY = "pydoc"
WINDOW = 512
POOL_TOKENS = 65536
HELDOUT_TOKENS = 8192
BATCH = 4
CPU = torch.device("cpu")

CORPUS, OWN, MIX = "corpus", "selfgen-t1", "mix:selfgen-t1"
TEXTS = (CORPUS, OWN, MIX)
GPTQ, SPARSE, SIGN = (
    ("gptq-w3g64", "none"),
    ("sparsegpt-s50", "none"),
    ("gptq-w3g64", "signround-25"),
)


def runs() -> Iterator[tuple[str, str, str, int, int]]:
    """Yield method, finish, text, tokens and seed, most telling first."""
    for method in (GPTQ, SPARSE):
        yield from ((*method, text, 16384, 0) for text in TEXTS)
    yield from ((*GPTQ, text, 2048, 0) for text in TEXTS)
    yield from ((*GPTQ, text, 16384, 1) for text in TEXTS)
    yield from ((*SPARSE, text, 2048, 0) for text in TEXTS)
    yield from ((*SIGN, text, 16384, 0) for text in TEXTS)
    yield from ((*SIGN, text, 16384, 1) for text in (CORPUS, MIX, OWN))
    yield from ((*GPTQ, text, 65536, 0) for text in TEXTS)
    yield from ((*GPTQ, text, 16384, 2) for text in TEXTS)
    yield from ((*SPARSE, text, 65536, 0) for text in TEXTS)
    yield from ((*SIGN, text, 2048, 0) for text in TEXTS)
    yield from (("gptq-w4g64", "none", text, 16384, 0) for text in TEXTS)


def meters(corpora: tuple[str, ...]) -> dict[str, DivergenceMeter]:
    """Return a meter against the dense model on the held-out part of each corpus."""
    base = load(MODEL, dtype=body_dtype(CPU))
    found = {}
    for corpus in map(load_corpus, corpora):
        text = windows(corpus, "heldout", base.tokenizer, tokens=HELDOUT_TOKENS, length=WINDOW)
        found[corpus.name] = DivergenceMeter(BaseReference(base.model, text.input_ids, BATCH))
    return found


def calibration(bench: Workbench, text: str, corpus: str, tokens: int, seed: int) -> Windows:
    """Return calibration windows; a seed draws other windows, from a corpus too."""
    source, tokenizer = CalibrationText.parse(text), bench.loaded.tokenizer
    count = tokens // WINDOW // (2 if source.mixed else 1)
    parts = []
    if source.recipe is None or source.mixed:
        pool = windows(
            load_corpus(corpus),
            "calibration",
            tokenizer,
            tokens=POOL_TOKENS,
            length=WINDOW,
            seed=seed,
        )
        parts.append(
            windows_of(pool.input_ids[:count].contiguous(), tokenizer, pool.corpus, pool.split)
        )
    if source.recipe is not None:
        teacher = ModelTeacher(bench.loaded, bench.device, WINDOW)
        parts.append(
            recipe_windows(
                source.recipe, teacher, tokenizer, tokens=count * WINDOW, seed=seed,
                progress=bench.progress,
            )
        )  # fmt: skip
    return parts[0] if len(parts) == 1 else interleave(*parts, tokenizer)


def settings(finish: str, seed: int) -> StudyConfig:
    """Return the configuration of a run."""
    values = {
        "model": MODEL,
        "seed": seed,
        "device": "cpu",
        "data.window": WINDOW,
        "search.finish": finish,
    }
    return load_config(None, values)


def measure(
    run: tuple[str, str, str, int, int], corpus: str, held: dict[str, DivergenceMeter], shown: Any
) -> list[dict[str, Any]]:
    """Compress once and return a row a held-out text."""
    linear, finish, text, tokens, seed = run
    bench = Workbench(settings(finish, seed), shown)
    bench.__dict__["calibration"] = calibration(bench, text, corpus, tokens, seed)
    spec = LayerSpec.parse(linear)
    plan = Plan({s.name: spec if s.kind == "linear" else DENSE for s in bench.sketch.sites})
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        out = write_artefact(bench, plan, Path(folder) / "model", {}, shown)
        seconds = time.process_time() - begun
        model = load_native(out, dtype=body_dtype(CPU))
    rows = []
    for label, meter in held.items():
        count = len(meter.reference.windows)
        scores = meter.measure(model, range(count), head_token="dense")
        rows.append(
            {
                "linear": linear,
                "finish": finish,
                "calibration": text,
                "calibration_tokens": tokens,
                "seed": seed,
                "heldout": label,
                "kl_nats": statistics.fmean(scores.kl_nats),
                "kl_se": statistics.stdev(scores.kl_nats) / count**0.5,
                "window_kl": list(scores.kl_nats),
                "compress_cpu_s": seconds,
            }
        )
    return rows


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="a text of at least 200,000 tokens")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "measured.json"
    )
    parser.add_argument("--minutes", type=float, default=300, help="start no run after these")
    arguments = parser.parse_args()
    quiet_libraries()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    keys = ("linear", "finish", "calibration", "calibration_tokens", "seed")
    done = {tuple(row[key] for key in keys) for row in rows}
    held = meters((arguments.corpus, AWAY))
    described = {
        "model": MODEL,
        "corpus": Path(arguments.corpus).name,
        "window": WINDOW,
        "heldout_tokens": HELDOUT_TOKENS,
        "threads": torch.get_num_threads(),
    }
    with progress() as shown:
        for run in runs():
            if run in done:
                continue
            if time.monotonic() - begun > 60 * arguments.minutes:
                break
            rows += measure(run, arguments.corpus, held, shown)
            record = {"settings": described, "versions": versions(), "rows": rows}
            part = arguments.out.with_suffix(".partial")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(arguments.out)
            for row in rows[-len(held) :]:
                name = " ".join(str(row[key]) for key in keys)
                shown.log(
                    f"{name} on {row['heldout']}: KL {row['kl_nats']:.4f} ± {row['kl_se']:.4f}"
                )


if __name__ == "__main__":
    main()
