"""Seconds of one processor for compressing the linears of a few blocks at several levels.

``python studies/store-building/measure.py`` compresses every linear of some blocks from second
moments of the model's own inputs and writes a layer store, as a search does: what reads one input
shares statistics, factorisation and, up to so many rows, the run of the solver; a block is one
file. ``--apart`` makes a run and a file of every linear and level instead. Seconds are those of
the process, on one thread, so that other work on the machine does not count.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.cli.libraries import quiet_libraries
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.evaluate.record import hardware, versions
from autocomp.formats.base import CompressedWeight
from autocomp.layers.store import LayerStore, StoreKey
from autocomp.methods.compose import compress_together
from autocomp.models import LoadedModel, load
from autocomp.search.filling import Choice, together

OUT = Path(__file__).parent / "results" / "store-building.json"
LEVELS = tuple(f"gptq-w{bits}g64" for bits in (2, 3, 4, 5, 6))


def second_moments(
    model: nn.Module, names: dict[str, str], token_ids: Tensor
) -> dict[str, Tensor]:
    """Return ``E[x xᵀ]`` (in, in) of inputs by their name.

    Args:
        model: The model.
        names: One linear that reads it by the name of each input.
        token_ids: (windows, length) int64.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2).float()
            found[name] = rows.T @ rows / len(rows)

        return hook

    hooks = [
        model.get_submodule(linear).register_forward_pre_hook(keep(name))
        for name, linear in names.items()
    ]
    with torch.inference_mode():
        model(token_ids)
    for hook in hooks:
        hook.remove()
    return found


class Build:
    """Compresses blocks into a store and keeps the time.

    Args:
        loaded: The model.
        stats: Statistics by the name of an input.
        apart: A run of the solver and a file for every linear and level.
    """

    def __init__(self, loaded: LoadedModel, stats: dict[str, Stats], apart: bool) -> None:
        self._loaded = loaded
        self._stats = stats
        self._apart = apart
        self.seconds: dict[str, float] = defaultdict(float)
        self.made: dict[str, int] = defaultdict(int)
        self.writing_s = self.waiting_s = 0.0

    def compress(self, choices: list[Choice]) -> dict[Choice, CompressedWeight]:
        """Return the compressed weights of a block."""
        sketch, found = self._loaded.sketch, {}
        apart = [[choice] for choice in choices]
        for stack in apart if self._apart else together(sketch, choices):
            reads, specs = sketch[stack[0][0]].reads, [spec for _, spec in stack]
            readers = (site.role for site in sketch.sites if site.reads == reads)
            weights = [
                self._loaded.model.get_submodule(name).weight.detach().float() for name, _ in stack
            ]
            begun = time.process_time()
            made = compress_together(weights, specs, self._stats[reads], sketch.dtype)
            group = ", ".join(role.removesuffix("_proj") for role in readers)
            self.seconds[group] += time.process_time() - begun
            self.made[group] += len(stack)
            found |= dict(zip(stack, made, strict=True))
        return found

    def write(self, store: LayerStore, found: dict[Choice, CompressedWeight]) -> None:
        """Write the compressed weights of a block."""
        entries = {
            StoreKey("model", "base", name, spec.token(), "", "", ""): weight
            for (name, spec), weight in found.items()
        }
        files = [{key: weight} for key, weight in entries.items()] if self._apart else [entries]
        begun, wall = time.process_time(), time.perf_counter()
        for file in files:
            store.put_all(file)
        self.writing_s += time.process_time() - begun
        self.waiting_s += time.perf_counter() - wall


def main(argv: list[str] | None = None) -> None:
    """Measure and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--apart", action="store_true", help="one linear and level at a time")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)
    loaded = load(asked.model, device="cpu", dtype=torch.float32)
    linears = [site for site in loaded.sketch.sites if site.kind == "linear"]
    sites = [site for site in linears if site.block < asked.blocks]
    generator = torch.Generator().manual_seed(0)
    vocabulary = loaded.model.config.vocab_size
    token_ids = torch.randint(vocabulary, (1, asked.tokens), generator=generator)
    readers = {site.reads: site.name for site in sites}
    stats = {
        name: Stats(hessian=moments, norms=moments.diagonal().sqrt())
        for name, moments in second_moments(loaded.model, readers, token_ids).items()
    }
    specs = [LayerSpec.parse(level) for level in asked.levels]
    build = Build(loaded, stats, asked.apart)
    with tempfile.TemporaryDirectory() as folder:
        store = LayerStore(Path(folder))
        for block in range(asked.blocks):
            choices = [(s.name, spec) for s in sites if s.block == block for spec in specs]
            build.write(store, build.compress(choices))
    rows = [
        {
            "linears": group,
            "compressed": build.made[group],
            "seconds": round(seconds, 3),
            "ms_each": round(1000 * seconds / build.made[group], 1),
        }
        for group, seconds in build.seconds.items()
    ]
    total = sum(build.seconds.values()) + build.writing_s
    record = {
        "settings": {
            "model": asked.model,
            "blocks": asked.blocks,
            "levels": asked.levels,
            "apart": asked.apart,
        },
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "linears": len(sites),
        "seconds": round(total, 3),
        "seconds_of_all_linears": round(total / len(sites) * len(linears), 1),
        "writing_s": round(build.writing_s, 3),
        "waiting_for_writes_s": round(build.waiting_s, 3),
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| linears | seconds | ms a linear and level |\n|---|---|---|")
    for row in rows:
        print(f"| {row['linears']} | {row['seconds']:.2f} | {row['ms_each']} |")
    print(f"writing took {build.writing_s:.2f} s, {build.waiting_s:.2f} s on the clock")
    print(
        f"{len(sites)} linears took {total:.1f} s: {record['seconds_of_all_linears']} s for all."
    )


if __name__ == "__main__":
    main()
