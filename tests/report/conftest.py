"""Records of an imaginary study."""

from dataclasses import dataclass, replace

import pytest

from autocomp.evaluate.winner import RankCorrelation, WinnersCurse
from autocomp.report.conclusion import Conclusion
from autocomp.report.front import CostAxis, FrontInfo, front_info
from autocomp.search.hypervolume import HypervolumeCurve


@dataclass
class FakeFinished:
    heldout_loss: float
    heldout_loss_se: float
    perplexity: float
    weight_bytes: int
    recovery: str = ""

    @property
    def heldout_kl_nats(self) -> float:
        return self.heldout_loss


@dataclass
class FakeRecord:
    number: int
    family: str
    origin: str
    weight_bytes: int
    loss: float | None
    state: str = "COMPLETE"
    feasible: bool = True
    finished: FakeFinished | None = None
    decode_ms: float | None = None

    @property
    def cost(self) -> float:
        return self.weight_bytes if self.decode_ms is None else self.decode_ms


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


CONCLUSION = Conclusion(
    curse=WinnersCurse(tied=2, compared=5, optimism=0.0123),
    finalists=(
        {"trial": 3, "difference": 0.0, "low": 0.0, "high": 0.0, "tied": True},
        {"trial": 0, "difference": 0.22, "low": 0.2, "high": 0.24, "tied": False},
    ),
    agreement=RankCorrelation(spearman=0.5, kendall=0.333, pairs=5),
    tokens={"calibration": 4096, "search": 123_456},
)


def build(
    items: list[FakeRecord], metric: str = "kl_nats", axis: CostAxis | None = None
) -> FrontInfo:
    return front_info(
        items,
        [4, 2, 1, 3],
        metric=metric,
        axis=axis or CostAxis(limit=80_000_000),
        conclusion=CONCLUSION,
        families=[
            {"family": "quantized", "measured": 2, "trial": 3, "weight_bytes": 80,
             metric: 0.3, "over_best": 1.0},
            {"family": "<script>alert(1)</script>", "measured": 1, "trial": 1, "weight_bytes": 79,
             metric: 0.6, "over_best": 2.0},
        ],
        timings=[{"stage": "score", "seconds": 12.5, "share": 0.25, "peak_rss_bytes": 3_000_000}],
        settings={"model": "tiny", "corpus": "pydoc", "window": 512, "max_bytes": 80_000_000,
                  "max_memory": None},
    )  # fmt: skip


@pytest.fixture
def info() -> FrontInfo:
    return build(records())


@pytest.fixture
def by_error() -> FrontInfo:
    return build(records(), "task_error")


@pytest.fixture
def by_time() -> FrontInfo:
    """Perplexity against modelled milliseconds, with the hypervolume of every trial."""
    items = [replace(record, decode_ms=record.weight_bytes / 1000) for record in records()]
    growth = HypervolumeCurve("perplexity", "decode_ms", (1.0, 0.1), (0, 1, 2), (0.0, 0.01, 0.02))
    sources = {"weight_bytes": "exact", "decode_ms": "modelled"}
    return build(items, "perplexity", CostAxis("decode_ms", 0.09, sources, growth))


@pytest.fixture
def empty() -> FrontInfo:
    return front_info([], [])
