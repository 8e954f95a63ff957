"""What compiling the decoder blocks gains, what it costs, and whether it still sees a plan.

``python studies/throughput/compiled.py`` runs the body with and without compiled blocks, in turns,
then changes it as a search does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.cli.libraries import quiet_libraries
from autocomp.evaluate.head import final_hidden
from autocomp.evaluate.record import hardware, versions
from autocomp.layers.apply import BypassedMlp, replace_module
from autocomp.models import load, structure
from autocomp.models.device import body_dtype

OUT = Path(__file__).parent / "results" / "compiled.json"
CPU = torch.device("cpu")


def timed(run: Callable[[], Tensor]) -> float:
    """Return the seconds of a pass."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def switch(blocks: list[nn.Module], compiled: list[Any] | None) -> None:
    """Let blocks run as compiled, or as they are."""
    for index, block in enumerate(blocks):
        block._compiled_call_impl = compiled[index] if compiled else None


def main() -> None:
    """Measure and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    quiet_libraries()
    model = load(asked.model, dtype=body_dtype(CPU)).model
    parts = structure(model)
    generator = torch.Generator().manual_seed(0)
    shape = (asked.windows, asked.length)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    blocks = parts.blocks
    eager = final_hidden(model, ids)

    def run(windows: int = asked.windows) -> Tensor:
        return final_hidden(model, ids[:windows])

    for block in blocks:
        block.compile()
    compiled = [block._compiled_call_impl for block in blocks]
    first_s = timed(run)
    seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(asked.turns):
        for name, found in seconds.items():
            switch(blocks, compiled if name == "compiled" else None)
            found.append(timed(run))
    eager_s, compiled_s = (statistics.median(found) for found in seconds.values())
    before = run()
    writer = parts.get(parts.linears(parts.mlp_name(0))[-1])
    handle = writer.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    sees_hooks = not torch.equal(run(), before)
    handle.remove()
    middle = parts.mlp_name(len(blocks) // 2)
    kept = replace_module(model, middle, BypassedMlp())
    bypass_s = timed(run)
    replace_module(model, middle, kept)
    other_batch_s = timed(lambda: run(asked.windows // 2))
    difference = (before.float() - eager.float()).norm() / eager.float().norm()
    record = {
        "settings": {"model": Path(asked.model).name, "windows": list(shape)},
        "versions": versions(),
        "hardware": hardware(CPU),
        "dtype": str(model.dtype).removeprefix("torch."),
        "eager_tokens_per_s": ids.numel() / eager_s,
        "compiled_tokens_per_s": ids.numel() / compiled_s,
        "gain": eager_s / compiled_s,
        "compile_s": first_s - compiled_s,
        "bypass_compile_s": bypass_s - compiled_s,
        "other_batch_compile_s": other_batch_s - compiled_s / 2,
        "relative_difference": difference.item(),
        "sees_hooks": sees_hooks,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
