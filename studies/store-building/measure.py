"""Seconds of one processor for compressing the linears of a few blocks at several levels.

``python studies/store-building/measure.py`` compresses every linear of some blocks from second
moments of the model's own inputs. Linears that read the same input share their statistics and with
them the factorisation, as in a search. Seconds are those of the process, on one thread, so that
other work on the machine does not count.
"""

import argparse
import json
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
from autocomp.methods.compose import compress
from autocomp.models import load

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


def main(argv: list[str] | None = None) -> None:
    """Measure and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
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
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for site in sites:
        weight = loaded.model.get_submodule(site.name).weight.detach().float()
        for level in asked.levels:
            spec, begun = LayerSpec.parse(level), time.process_time()
            compress(weight, spec, stats[site.reads], loaded.sketch.dtype)
            seconds[site.role][level].append(time.process_time() - begun)
    rows = [
        {"role": role, "level": level, "seconds": round(sum(times) / len(times), 4)}
        for role, by_level in seconds.items()
        for level, times in by_level.items()
    ]
    total = sum(sum(times) for by_level in seconds.values() for times in by_level.values())
    record = {
        "settings": {"model": asked.model, "blocks": asked.blocks, "levels": asked.levels},
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "linears": len(sites),
        "seconds": round(total, 3),
        "seconds_of_all_linears": round(total / len(sites) * len(linears), 1),
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| linear | level | seconds |\n|---|---|---|")
    for row in rows:
        print(f"| {row['role']} | {row['level']} | {row['seconds']:.3f} |")
    print(
        f"{len(sites)} linears took {total:.1f} s: {record['seconds_of_all_linears']} s for all."
    )


if __name__ == "__main__":
    main()
