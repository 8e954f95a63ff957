"""One schema for everything that is measured: the value, and all that it depends on."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("autocomp", "torch", "transformers", "numpy", "scipy", "optuna", "lm_eval")


@cache
def versions() -> dict[str, str]:
    """Return what a result depends on besides its settings: packages, Python, processor."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version(), "machine": platform.machine()}


_versions = versions


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure.

    Args:
        value: In the unit that its name says; plain ratios otherwise.
        standard_error: Of the value as a mean over windows or examples; ``None`` where there is
            only one, or where the figure is exact.
    """

    value: float
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class DataRead:
    """What was read.

    Args:
        name: Corpus, protocol or task.
        digest: Sha256 over the token ids, or over the examples of a task, hexadecimal.
        units: Windows, or examples of a task.
        tokens: Tokens that went through the model.
        window: Tokens a window; 0 for a task. Perplexities of different windows do not compare.
        split: Part of the corpus or task.
        seed: Seed of the order in which units are read.
    """

    name: str
    digest: str
    units: int
    tokens: int
    window: int = 0
    split: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of decoding, and how well they use a device.

    Args:
        device: Name of the device.
        batch: Sequences.
        context: Tokens a sequence.
        source: Where the times come from (``autocomp.core.cost.SOURCES``).
        decode_ms: One token of every sequence, milliseconds.
        base_decode_ms: The same of the base.
        speedup: ``base_decode_ms / decode_ms``.
        intensity: Arithmetic intensity: operations a byte that is read.
        flops_per_s: Operations a second.
        mfu: Model FLOPs utilisation: that over the device's peak.

    Reference: Zhu et al. 2023, https://arxiv.org/abs/2308.07633, section 2.3; Chowdhery et al.
    2022, PaLM, https://arxiv.org/abs/2204.02311, appendix B (utilisation).
    """

    device: str
    batch: int
    context: int
    source: str
    decode_ms: float
    base_decode_ms: float
    speedup: float
    intensity: float
    flops_per_s: float
    mfu: float


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The survey's efficiency figures of a model.

    Args:
        weight_bytes: Weight file on disk, bytes.
        base_weight_bytes: Of the model that it was made from, bytes.
        compression_ratio: ``base_weight_bytes / weight_bytes``.
        flops_per_token: Floating-point operations of decoding one token at ``context``.
        base_flops_per_token: The same of the base.
        context: Tokens that are attended to.
        speed: Times on a device; ``None`` where none was asked for.

    Reference: Zhu et al. 2023, https://arxiv.org/abs/2308.07633, section 2.3.
    """

    weight_bytes: int
    base_weight_bytes: int
    compression_ratio: float
    flops_per_token: int
    base_flops_per_token: int
    context: int
    speed: Speed | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Efficiency":
        """Return the figures of their JSON form."""
        speed = data.get("speed")
        return cls(**{**data, "speed": None if speed is None else Speed(**speed)})


@dataclass(frozen=True)
class Measurement:
    """What one pass over one text or task gave.

    Args:
        metrics: By name, such as ``kl_nats``, ``perplexity``, ``top1_agreement``, ``acc``.
        data: What was read.
        dtype: Compute dtype of the body.
        device: ``cpu`` or ``cuda``.
        hardware: Processor or card.
        seconds: Wall time.
        floor_nats: KL of the base, computed in the candidate's arithmetic, to the base in fp32; it
            is subtracted from every ``kl_nats``. ``None`` where no KL was measured.
        efficiency: Size and operations, where the model is at hand.
        versions: Packages and Python.
    """

    metrics: Mapping[str, Metric]
    data: DataRead
    dtype: str
    device: str
    hardware: str
    seconds: float
    floor_nats: float | None = None
    efficiency: Efficiency | None = None
    versions: Mapping[str, str] = field(default_factory=_versions)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        """Return the measurement of its JSON form."""
        efficiency = data["efficiency"]
        return cls(
            **{
                **data,
                "metrics": {name: Metric(**found) for name, found in data["metrics"].items()},
                "data": DataRead(**data["data"]),
                "efficiency": None if efficiency is None else Efficiency.from_json(efficiency),
            }
        )


def hardware(device: torch.device) -> str:
    """Return the name of the card, or of the processor and the threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
