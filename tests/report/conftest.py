"""Records of an imaginary study."""

from dataclasses import dataclass

import pytest

from autocomp.report.front import FrontInfo, front_info


@dataclass
class FakeFinished:
    heldout_kl_nats: float
    heldout_se: float
    perplexity: float
    weight_bytes: int
    recovery: str = ""


@dataclass
class FakeRecord:
    number: int
    family: str
    origin: str
    weight_bytes: int
    kl_nats: float | None
    state: str = "COMPLETE"
    feasible: bool = True
    finished: FakeFinished | None = None


def records() -> list[FakeRecord]:
    return [
        FakeRecord(0, "quantized", "uniform", 80, 0.50, finished=FakeFinished(0.55, 0.01, 12, 80)),
        FakeRecord(1, "sparse", "probe-sparse", 79, 0.60),
        FakeRecord(2, "low-rank", "probe-low-rank", 78, 0.90),
        FakeRecord(
            3, "quantized", "knapsack", 80, 0.30, finished=FakeFinished(0.33, 0.01, 10, 80)
        ),
        FakeRecord(4, "bypassed", "probe", 70, 1.20, finished=FakeFinished(1.3, 0.02, 30, 70)),
        FakeRecord(5, "quantized", "mutation", 75, None, state="PRUNED", feasible=False),
        FakeRecord(6, "quantized", "mutation", 99, 0.10, feasible=False),
    ]


def build(items: list[FakeRecord]) -> FrontInfo:
    return front_info(
        items,
        [4, 2, 1, 3],
        families=[
            {"family": "quantized", "measured": 2, "trial": 3, "weight_bytes": 80,
             "kl_nats": 0.3, "over_best": 1.0},
            {"family": "<script>alert(1)</script>", "measured": 1, "trial": 1, "weight_bytes": 79,
             "kl_nats": 0.6, "over_best": 2.0},
        ],
        timings=[{"stage": "score", "seconds": 12.5, "share": 0.25, "peak_rss_bytes": 3_000_000}],
        settings={"model": "tiny", "corpus": "pydoc", "window": 512, "max_bytes": 80_000_000,
                  "max_memory": None},
    )  # fmt: skip


@pytest.fixture
def info() -> FrontInfo:
    return build(records())


@pytest.fixture
def empty() -> FrontInfo:
    return front_info([], [])
