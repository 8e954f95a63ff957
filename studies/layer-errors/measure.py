"""What masks and factors change in the output of single linears, beside the published algorithms.

``python studies/layer-errors/measure.py CORPUS --model MODEL --blocks 5 20`` compresses the
linears of these blocks from the inputs that the dense model gives them. Where the methods differ
from what their authors published, that is done here too, plainly and without regard to bytes.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from autocomp.cli.libraries import quiet_libraries
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.data import load_corpus, windows
from autocomp.evaluate.record import versions
from autocomp.models import load

compress = load_object("autocomp.methods.compose:compress")

TOKENS = (
    "sparsegpt-s50",
    "wanda-s50",
    "wanda-s50-variant",
    "wanda-s50+dsnot",
    "esparse-s50",
    "sparsegpt-2:4",
    "wanda-2:4",
    "wanda-2:4+dsnot",
    "esparse-2:4",
    "shuffle-global+wanda-2:4",
    "shuffle+wanda-2:4",
    "shuffle+esparse-2:4",
    "shuffle+sparsegpt-2:4",
    "svd-p50",
    "wsvd-p50",
    "asvd-p50",
    "asvd-p50-a100",
    "laser-k10",
    "laser-k50",
    "lplr-p50-w8",
    "lplr-p50-w8t",
    "lplr-p50-w8t-q2",
    "lplr-p50-w4",
    "lplr-p50-w4t",
)
WINDOW = 512


def asvd(weight: Tensor, inputs: Tensor, token: str) -> Tensor:
    """Return ASVD with the random SVD of exactly as many directions as are kept.

    Args:
        weight: (out, in).
        inputs: (n, in).
        token: Of our method, which gives rank and α.
    """
    spec = LayerSpec.parse(token).factor
    scale = inputs.abs().mean(dim=0) ** (spec.alpha_percent / 100) + 1e-6
    torch.manual_seed(0)
    left, values, right = torch.svd_lowrank(weight * scale, q=spec.rank_for(tuple(weight.shape)))
    return (left * values) @ (right / scale[:, None]).T


def laser(weight: Tensor, inputs: Tensor, token: str) -> Tensor:
    """Return LASER's product, of a random SVD with two power steps; arguments as of ``asvd``."""
    torch.manual_seed(0)
    rank = LayerSpec.parse(token).factor.rank_for(tuple(weight.shape))
    left, values, right = torch.svd_lowrank(weight, q=rank, niter=2)
    return (left * values) @ right.T


def lplr(weight: Tensor, inputs: Tensor, token: str) -> Tensor:
    """Return LPLR's product: one sketch, scales a factor, then a scale and a shift fitted.

    Arguments are those of ``asvd``; the sketch is that of seed 0.
    """
    spec = LayerSpec.parse(token).factor
    rank = spec.rank_for(tuple(weight.shape))

    def rounded(factor: Tensor) -> Tensor:
        low, high = factor.aminmax()
        step = (high - low) / (2**spec.bits - 1)
        return ((factor - low) / step).round() * step + low

    torch.manual_seed(0)
    left = rounded(weight @ (torch.randn(weight.shape[1], rank) / math.sqrt(rank)))
    found = left @ rounded(torch.linalg.pinv(left) @ weight)
    plain = torch.stack([found.flatten(), torch.ones(found.numel())], dim=1)
    gain, shift = torch.linalg.lstsq(plain, weight.flatten()[:, None]).solution[:, 0]
    return gain * found + shift


def dsnot(weight: Tensor, inputs: Tensor, token: str) -> Tensor:
    """Return DSnoT's swaps behind Wanda, which go on when the error changes sign.

    Of each row 50 at most, while the mean error is above 0.1, summed over 2,048 tokens. Arguments
    are those of ``asvd``.
    """
    spec, stats = LayerSpec.parse(token), stats_of(inputs)
    start = compress(weight, LayerSpec(mask=spec.mask), stats, "float32").to_dense() != 0
    gain = weight * stats.mean
    sort_key = gain / inputs.var(dim=0, correction=0).clamp_min(1e-12)
    score = weight.abs() * stats.norms
    found = torch.zeros_like(weight)
    for row, keep in enumerate(start):
        kept, gains = keep.clone(), gain[row].tolist()
        error = sum(value for value, here in zip(gains, keep.tolist(), strict=True) if not here)
        queues = {}
        for sign in (1, -1):
            grow = torch.nonzero(~keep & (sign * gain[row] > 0))[:, 0]
            prune = torch.nonzero(keep & (sign * gain[row] < 0))[:, 0]
            grow = grow[(-sign * sort_key[row, grow]).argsort()]
            queues[sign] = iter(
                zip(grow.tolist(), prune[score[row, prune].argsort()].tolist(), strict=False)
            )
        for _ in range(50):
            pair = next(queues[1 if error > 0 else -1], None)
            if abs(error) <= 0.1 / 2048 or pair is None:
                break
            kept[pair[0]], kept[pair[1]] = True, False
            error += gains[pair[1]] - gains[pair[0]]
        found[row] = weight[row] * kept
    return found


PUBLISHED: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "wanda-s50+dsnot": dsnot,
    "asvd-p50": asvd,
    "asvd-p50-a100": asvd,
    "laser-k10": laser,
    "laser-k50": laser,
    "lplr-p50-w8t": lplr,
    "lplr-p50-w4t": lplr,
}


def stats_of(inputs: Tensor) -> Stats:
    """Return what the methods need of inputs (n, in)."""
    hessian = inputs.T @ inputs / len(inputs)
    return Stats(
        hessian=hessian,
        norms=hessian.diagonal().sqrt(),
        mean=inputs.mean(dim=0),
        absmean=inputs.abs().mean(dim=0),
        sample=inputs,
    )


def errors(found: Tensor, weight: Tensor, hessian: Tensor) -> dict[str, float]:
    """Return the squares of what changed over those of what was: of the output, of the weight."""
    change = found - weight
    output = ((change @ hessian) * change).sum() / ((weight @ hessian) * weight).sum()
    frobenius = change.square().sum() / weight.square().sum()
    return {"output_error": float(output), "weight_error": float(frobenius)}


def main() -> None:
    """Measure every linear of the blocks, then print means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--tokens", type=int, default=2048, help="of the calibration")
    parser.add_argument("--out", type=Path, help="result file")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_grad_enabled(False)
    loaded = load(arguments.model, dtype=torch.float32)
    text = windows(
        load_corpus(arguments.corpus),
        "calibration",
        loaded.tokenizer,
        tokens=arguments.tokens,
        length=WINDOW,
    )
    sites = [
        site
        for site in loaded.sketch.sites
        if site.kind == "linear" and site.block in arguments.blocks
    ]
    inputs: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    hooks = [
        loaded.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0].flatten(0, -2))
        )
        for name, kept in inputs.items()
    ]
    for window in text.input_ids:
        loaded.model(window[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    rows = []
    for site in sites:
        weight = loaded.model.get_submodule(site.name).weight.data
        read = torch.cat(inputs.pop(site.name))
        stats = stats_of(read)
        for token in TOKENS:
            made = compress(weight, LayerSpec.parse(token), stats, "float16")
            here = {"linear": site.name, "row": token, "nbytes": made.nbytes}
            rows.append(here | errors(made.to_dense(), weight, stats.hessian))
            if token in PUBLISHED:
                made = PUBLISHED[token](weight, read, token)
                here = {"linear": site.name, "row": f"published:{token}"}
                rows.append(here | errors(made, weight, stats.hessian))
        print(site.name, flush=True)
    means = {
        row: {
            key: round(sum(r[key] for r in rows if r["row"] == row) / len(sites), 5)
            for key in ("output_error", "weight_error")
        }
        for row in dict.fromkeys(r["row"] for r in rows)
    }
    name = Path(arguments.model).name
    found = {
        "model": name,
        "model_digest": loaded.digest,
        "corpus": Path(arguments.corpus).name,
        "calibration_digest": text.digest,
        "tokens": arguments.tokens,
        "blocks": arguments.blocks,
        "versions": versions(),
        "means": means,
        "rows": rows,
    }
    out = arguments.out or Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row, mean in means.items():
        print(row, mean)


if __name__ == "__main__":
    main()
