"""The KL of each window of one text, for the models that ``measure.py`` compares.

``python studies/coverage/collect.py BASE FOLDER… --text ROWS.jsonl --out KLS.json`` measures every
folder against the base. Models that are in the file are not measured again.
"""

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.data.protocols import protocol_windows
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.files import load_any
from autocomp.evaluate.record import hardware
from autocomp.evaluate.reference import reference_of
from autocomp.models.device import body_dtype, resolve_device

BATCH = 4


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--text", required=True, help="test rows of WikiText-2 raw")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=280)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    quiet_libraries()
    place = resolve_device("auto")
    dtype = body_dtype(place)
    body, tokenizer = load_any(asked.base, place, dtype)
    text = protocol_windows(
        "wikitext2", tokenizer, length=asked.window, file=asked.text, limit=asked.windows
    )
    reference = reference_of(
        body,
        lambda: load_any(asked.base, place, torch.float32)[0],
        text.input_ids,
        BATCH,
    )
    meter = DivergenceMeter(reference, body)
    del body
    rows: list[dict[str, Any]] = []
    if asked.out.exists():
        rows = json.loads(asked.out.read_text(encoding="utf-8"))["rows"]
    done = {row["name"] for row in rows}
    with progress() as shown:
        for folder in asked.folders:
            name = Path(folder).name
            if name in done:
                continue
            model = load_any(folder, place, dtype)[0]
            shown.start(name, text.tokens, "token")
            scores = meter.measure(
                model, range(len(text.input_ids)), head_token=name, advance=shown.advance
            )
            shown.finish()
            rows.append({"name": name, "window_kl": list(scores.kl_nats)})
            record = {
                "text": text.corpus,
                "digest": text.digest,
                "window": asked.window,
                "floor_nats": meter.floor_nats,
                "dtype": str(dtype),
                "hardware": hardware(place),
                "rows": rows,
            }
            part = asked.out.with_suffix(".partial")
            part.write_text(json.dumps(record) + "\n", encoding="utf-8")
            part.replace(asked.out)
            del model
            gc.collect()


if __name__ == "__main__":
    main()
