"""How often do paired intervals of KL differences hold the difference on the full text?

``python studies/coverage/measure.py KLS.json`` reads several models' KL on each window of one
text, ``{"rows": [{"name": …, "window_kl": […]}]}``. For every pair of models it draws 200 samples
of 8 to 64 windows and counts the 95 % intervals that hold the difference over all windows: with
and without the correction for the finite text, with and without a prior of the spread from the
other models. It prints the table and writes it.
"""

import argparse
import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.evaluate.intervals import SpreadPrior, paired
from autocomp.evaluate.record import versions

SAMPLE_WINDOWS = (8, 16, 32, 64)
RESAMPLINGS = 200
CONFIDENCE = 0.95
ACCEPTED = (0.92, 0.98)


def pair_shares(
    losses: NDArray[np.float64], windows: int, *, finite: bool, informed: bool, seed: int
) -> tuple[list[float], float] | None:
    """Return the share of intervals that hold, a pair each, and their mean relative half width.

    Args:
        losses: KL of each window, (models, windows of the text), nats a token.
        windows: Windows a sample.
        finite: Whether the interval knows how many windows the text has.
        informed: Whether it has a prior.
        seed: Of the samples; pairs have samples of their own.

    Returns:
        Shares, and the half width over the sum of the pair's KLs; ``None`` without a prior.
    """
    total = losses.shape[1]
    rng = np.random.default_rng(seed)
    shares, widths = [], []
    for one, other in combinations(range(len(losses)), 2):
        prior = None
        if informed:
            prior = SpreadPrior.fit(np.delete(losses, [one, other], axis=0).tolist())
            if prior is None:
                return None
        pair = losses[[one, other]]
        truth, scale = float((pair[0] - pair[1]).mean()), float(pair.mean(axis=1).sum())
        held = 0
        for _ in range(RESAMPLINGS):
            candidate, rival = pair[:, rng.choice(total, windows, replace=False)].tolist()
            found = paired(
                candidate,
                rival,
                total=total if finite else None,
                prior=prior,
                confidence=CONFIDENCE,
            )
            held += found.low <= truth <= found.high
            widths.append((found.high - found.low) / 2 / scale)
        shares.append(held / RESAMPLINGS)
    return shares, float(np.mean(widths))


def coverage(losses: NDArray[np.float64], seed: int = 0) -> list[dict[str, Any]]:
    """Return a row for each sample size and kind of interval.

    Args:
        losses: KL of each window, (models, windows of the text), nats a token.
        seed: Of the samples.
    """
    rows = []
    for windows, finite, informed in product(SAMPLE_WINDOWS, (False, True), (False, True)):
        if windows >= losses.shape[1]:
            continue
        found = pair_shares(losses, windows, finite=finite, informed=informed, seed=seed)
        if found is None:
            continue
        shares, width = found
        rows.append(
            {
                "windows": windows,
                "finite_population": finite,
                "prior": informed,
                "coverage": float(np.mean(shares)),
                "lowest_pair": min(shares),
                "highest_pair": max(shares),
                "pairs_accepted": float(
                    np.mean([ACCEPTED[0] <= share <= ACCEPTED[1] for share in shares])
                ),
                "relative_half_width": width,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Analyse a file, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kls", type=Path, help="per-window KLs of at least two models")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    given = json.loads(asked.kls.read_text(encoding="utf-8"))
    models = given.pop("rows")
    lengths = sorted({len(row["window_kl"]) for row in models})
    if len(models) < 2 or len(lengths) != 1:
        parser.error(
            f"{asked.kls} must hold two or more models on one text, got {lengths} windows"
        )
    losses = np.array([row["window_kl"] for row in models])
    rows = coverage(losses, asked.seed)
    settings = {"windows": lengths[0], "resamplings": RESAMPLINGS, "confidence": CONFIDENCE}
    record = {
        "settings": given | settings | {"seed": asked.seed},
        "versions": versions(),
        "models": [
            {"name": row["name"], "kl_nats": mean}
            for row, mean in zip(models, losses.mean(axis=1).tolist(), strict=True)
        ],
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| windows | finite text | prior | coverage | pairs, lowest to highest | half width |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        knows = " | ".join("yes" if row[key] else "no" for key in ("finite_population", "prior"))
        print(
            f"| {row['windows']} | {knows} | {row['coverage']:.3f} | {row['lowest_pair']:.3f} to "
            f"{row['highest_pair']:.3f} | {row['relative_half_width']:.4f} |"
        )


if __name__ == "__main__":
    main()
