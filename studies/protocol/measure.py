"""Our perplexities and a plain transformers loop's, in fp32 on the same file.

python measure.py wikitext2 ROWS.jsonl MODEL [MODEL ...] --lengths 512 2048
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from autocomp.cli.libraries import quiet_libraries
from autocomp.data import PROTOCOLS, protocol_windows
from autocomp.evaluate.perplexity import perplexity
from autocomp.evaluate.record import Measurement, hardware, versions
from autocomp.evaluate.summary import data_read, text_metrics
from autocomp.models import load
from autocomp.models.reference import REFERENCE, reference_path

OUT = Path(__file__).parent / "results"
BATCH_TOKENS = 2048
CPU = torch.device("cpu")
JOINED_BY = {"wikitext2": "\n\n", "ptb": "\n\n", "ptb-new": " ", "c4-new": " "}


def plain_windows(protocol: str, rows: list[str], tokenizer: Any, length: int) -> torch.Tensor:
    """Cut windows as the papers' code does, (n, length)."""
    if protocol == "c4":
        random.seed(0)
        windows = []
        for _ in range(256):
            while True:
                document = rows[random.randint(0, len(rows) - 1)]
                ids = tokenizer(document, return_tensors="pt", verbose=False).input_ids[0]
                if len(ids) > length:
                    break
            start = random.randint(0, len(ids) - length - 1)
            windows.append(ids[start : start + length])
        return torch.stack(windows)
    text = JOINED_BY[protocol].join(rows[:1100] if protocol == "c4-new" else rows)
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    windows = ids[: len(ids) // length * length].view(-1, length)
    return windows[:256] if protocol == "c4-new" else windows


@torch.no_grad()
def plain(folder: str, protocol: str, file: Path, length: int, limit: int | None) -> Any:
    """Return perplexity, windows and seconds of a loop over whole logits, a window a pass."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
    windows = plain_windows(protocol, rows, tokenizer, length)[:limit]
    begun = time.perf_counter()
    losses = []
    for window in windows:
        logits = model(window[None]).logits[0, :-1]
        losses.append(functional.cross_entropy(logits, window[1:]).double())
    seconds = time.perf_counter() - begun
    return math.exp(torch.stack(losses).mean()), len(windows), seconds


def ours(folder: str, protocol: str, file: Path, length: int, limit: int | None) -> Measurement:
    """Return what autocomp measures, in fp32."""
    loaded = load(folder, dtype=torch.float32)
    windows = protocol_windows(protocol, loaded.tokenizer, length=length, file=file, limit=limit)
    begun = time.perf_counter()
    batch = max(1, BATCH_TOKENS // length)
    nll = perplexity(loaded.model, windows.input_ids, batch_size=batch)
    seconds, read = time.perf_counter() - begun, data_read(windows)
    return Measurement(
        metrics=text_metrics(nll, windows.text_bytes, read),
        data=read,
        dtype="float32",
        device="cpu",
        hardware=hardware(CPU),
        seconds=seconds,
    )


def row(model: str, asked: argparse.Namespace, length: int) -> dict[str, Any]:
    """Return both perplexities of a model at one window length."""
    folder = str(reference_path()) if model == REFERENCE else model
    given = folder, asked.protocol, asked.file, length, asked.limit
    found = ours(*given)
    value, count, seconds = plain(*given)
    if count != found.data.units:
        raise SystemExit(f"{model}: {count} windows in the plain loop, {found.data.units} in ours")
    return {
        "model": "/".join(Path(model).parts[-2:]),
        "length": length,
        "ours": found.to_json(),
        "plain_perplexity": value,
        "plain_seconds": seconds,
        "difference": found.metrics["perplexity"].value - value,
    }


def main() -> None:
    """Measure every model at every length and add the rows to the protocol's results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("file", type=Path, help="the protocol's rows, .jsonl with a text field")
    parser.add_argument("models", nargs="+", help="folders, or names that transformers loads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048])
    parser.add_argument("--limit", type=int, help="windows to read, from the first")
    asked = parser.parse_args()
    quiet_libraries()
    path = OUT / f"{asked.protocol}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    OUT.mkdir(exist_ok=True)
    for model in asked.models:
        for length in asked.lengths:
            done = row(model, asked, length)
            key = done["model"], length
            rows = [old for old in rows if (old["model"], old["length"]) != key] + [done]
            value = done["ours"]["metrics"]["perplexity"]["value"]
            print(f"{key[0]:24} {length:5} {value:12.6f} {done['difference']:+.1e}", flush=True)
            result = {"protocol": asked.protocol, "file": asked.file.name}
            path.write_text(
                json.dumps({**result, "versions": versions(), "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
