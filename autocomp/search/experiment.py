"""What scripts of studies share: their settings of model and text, held-out losses, result files.

A script has command-line arguments ``model``, ``corpus``, ``window`` and ``calibration``; its
results name model and text without their folders.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autocomp.core.plan import Plan
from autocomp.evaluate.record import hardware, versions
from autocomp.layers.apply import Fetch
from autocomp.search.workbench import Workbench


def shared_settings(asked: Namespace, seed: int, corpus: Path, model: str = "") -> dict[str, Any]:
    """Return the settings of model, seed and calibration text, by dotted key.

    Args:
        asked: The command line.
        seed: Of the study.
        corpus: The text, as it was dealt.
        model: The model, where the command line names several.
    """
    return {
        "model": model or asked.model,
        "seed": seed,
        "data.corpus": str(corpus),
        "data.calibration": "corpus",
        "data.window": asked.window,
        "data.calibration_tokens": asked.calibration,
    }


def heldout_losses(work: Workbench, plan: Plan, fetch: Fetch | None = None) -> list[float]:
    """Return the KL of every held-out window, nats a token; the live model is left as the plan.

    Args:
        work: The model.
        plan: What is measured, unfinished.
        fetch: Returns what a site computes with; the layer store's weights when ``None``.
    """
    meter = work.heldout_meter
    work.candidate.apply(plan, fetch or work.operands)
    windows, head = range(len(meter.reference.windows)), work.head_token(plan.layers)
    return list(meter.measure(work.model, windows, head_token=head).kl_nats)


def described(asked: Namespace, *without: str) -> dict[str, Any]:
    """Return the command line as results hold it.

    Args:
        asked: The command line.
        without: Arguments that results do not depend on, beside ``out``.
    """
    found = {key: value for key, value in vars(asked).items() if key not in ("out", *without)}
    if "model" in found:
        found["model"] = Path(asked.model).name
    return found | {"corpus": Path(asked.corpus).name}


def results_path(asked: Namespace, folder: Path) -> Path:
    """Return where results go: ``--out``, or a file of the model's name; its folder is made."""
    found = asked.out or folder / f"{Path(asked.model).name}.json"
    found.parent.mkdir(parents=True, exist_ok=True)
    return Path(found)


def write_results(
    path: Path,
    settings: Mapping[str, Any],
    found: Mapping[str, Any],
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Write results with what they depend on, and return them.

    Args:
        path: The file.
        settings: The command line, described.
        found: What was measured, JSON values.
        device: What measured it; the CPU when ``None``.
    """
    result = {
        "settings": dict(settings),
        "hardware": hardware(device or torch.device("cpu")),
        "versions": versions(),
        **found,
    }
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result
