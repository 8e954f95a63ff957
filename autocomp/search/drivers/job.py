"""What a driver hands to whoever measures a trial, and what it gets back: plain data.

Only the process of the driver writes to the study. Whoever measures, here or in another process,
sees a :class:`Job` and answers with a :class:`Report`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autocomp.core.plan import Plan
from autocomp.search.gate import Gate
from autocomp.search.records import Measured


@dataclass(frozen=True)
class Job:
    """A running trial that is to be measured.

    Args:
        number: Number of the trial in the study.
        logical: Index of its proposal.
        plan_json: Canonical JSON of the plan to measure.
        origin: What proposed it.
        family: Kind of plan.
        weight_bytes: Size of the weight file, bytes.
        gate: What it has to keep up with, from what was told when it was handed out.
    """

    number: int
    logical: int
    plan_json: str
    origin: str
    family: str
    weight_bytes: int
    gate: Gate | None = None

    @property
    def plan(self) -> Plan:
        """What to measure."""
        return Plan.from_json(json.loads(self.plan_json))


@dataclass(frozen=True, slots=True)
class Report:
    """What came of measuring a job.

    Args:
        measured: The loss; ``None`` where the evaluation failed.
        complete: Whether the top rung was read.
        reason: Why it failed.
        crashed: Whether it failed for another reason than the plan's numbers.
        stages: Wall seconds by stage.
    """

    measured: Measured | None
    complete: bool = False
    reason: str = ""
    crashed: bool = False
    stages: Mapping[str, float] = field(default_factory=dict)


Evaluate = Callable[[Job, Callable[[], object]], Report]
"""Measures a job; calls its second argument after every rung, to show that it is alive."""
