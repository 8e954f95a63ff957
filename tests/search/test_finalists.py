"""Which plans are finished: diverse ones among ties, and more where finishing turns the order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocomp.config import SearchConfig, load_config
from autocomp.core.progress import Silent
from autocomp.search.finalists import (
    COMMON,
    OWN,
    Finalists,
    FinishModel,
    contradicted,
    diverse,
    next_finalist,
)
from autocomp.search.records import FinishedRecord, TrialRecord
from autocomp.search.result import summarise
from autocomp.search.run import Search
from autocomp.search.stored import stored_context

UNITS = 24
THREE = SearchConfig(finalists=3, more_finalists=3)


def trial(number, loss, spread=0.0, origin="step", **params) -> TrialRecord:
    """A trial whose units have a mean of ``loss`` and differ from unit to unit by ``spread``."""
    noise = np.random.default_rng(number).normal(size=UNITS)
    units = loss + spread * (noise - noise.mean())
    return TrialRecord(
        number=number, logical=number, state="COMPLETE", origin=origin, family="quantized",
        plan_json="", digest=str(number), params=params, weight_bytes=100 - number, loss=loss,
        unit_loss=tuple(units),
    )  # fmt: skip


def finished(record: TrialRecord, loss: float, spread: float = 1e-4) -> FinishedRecord:
    units = trial(record.number + 1000, loss, spread).unit_loss
    return FinishedRecord(
        number=record.number, artefact="", heldout_kl_nats=loss, heldout_se=0.0, perplexity=1.0,
        weight_bytes=1, heldout_loss=loss, heldout_loss_se=0.0, unit_loss=units,
    )  # fmt: skip


def test_ties_are_told_apart_by_how_much_they_differ():
    """2 is next in loss and one decision away; 3 is tied as well and differs in all of them."""
    records = [
        trial(1, 1.000, 0.1, a=0, b=0, c=0),
        trial(2, 1.001, 0.1, a=0, b=0, c=1),
        trial(3, 1.002, 0.1, a=1, b=1, c=1),
        trial(4, 5.000, 0.1, a=2, b=2, c=2),
    ]
    assert [r.number for r in diverse(records, 2)] == [1, 3]
    assert [r.number for r in diverse(records, 3)] == [1, 3, 2]
    assert [r.number for r in diverse(records, 4)] == [1, 3, 2, 4], "then the next-best"
    assert [r.number for r in diverse(records[::-1], 9)] == [1, 3, 2, 4]


def test_without_ties_it_is_the_order_of_the_search():
    """Differences without any spread have intervals of no width."""
    records = [trial(n, 1 + n / 100, a=-n) for n in range(5)]
    assert [r.number for r in diverse(records, 3)] == [0, 1, 2]
    short = [replace(r, unit_loss=r.unit_loss[:1]) for r in records]
    assert [r.number for r in diverse(short, 3)] == [0, 1, 2], "one unit says nothing of ties"


def test_only_a_clear_difference_contradicts_the_search():
    records = [trial(n, 1 + n / 10) for n in range(3)]
    agreed = {0: finished(records[0], 0.5), 2: finished(records[2], 0.6)}
    assert not contradicted(records, agreed)
    assert not contradicted(records, {})
    reversed_ = {0: finished(records[0], 0.5), 2: finished(records[2], 0.4)}
    assert contradicted(records, reversed_)
    unclear = {0: finished(records[0], 0.5, 0.5), 2: finished(records[2], 0.49, 0.5)}
    assert not contradicted(records, unclear), "the interval holds 0"


def test_the_model_learns_what_finishing_does_to_a_class():
    """Coarse options lose half, fine ones nothing; a plan in between loses in between."""
    coarse, fine = {"w2": 1.0}, {"w4": 1.0}
    ratios = [np.log(0.5), np.log(0.5), 0.0, 0.0]
    model = FinishModel.fit([coarse, coarse, fine, fine], ratios, [{"w3": 1.0}])
    assert model.log_ratio(coarse) == pytest.approx(np.log(0.5), abs=0.02)
    assert model.log_ratio(fine) == pytest.approx(0.0, abs=0.02)
    half = model.log_ratio({"w2": 0.5, "w4": 0.5})
    assert half == pytest.approx(np.log(0.5) / 2, abs=0.02)
    # A class that was never finished gets the shared effect: the mean of the two, shrunk by
    # COMMON² / (COMMON² + OWN² / 2) towards 0.
    shrunk = np.log(0.5) / 2 * COMMON**2 / (COMMON**2 + OWN**2 / 2)
    assert model.log_ratio({"w3": 1.0}) == pytest.approx(shrunk, abs=0.02)


def context(sizes: dict[int, int]) -> SimpleNamespace:
    """What is asked of a variant's context, with the size of every plan."""
    return SimpleNamespace(
        variant=0, budgets=(100, 50, 25), owns=lambda params: True, exact_bytes=sizes.__getitem__
    )


@dataclass(frozen=True, eq=False)
class Toy(Finalists):
    """Twelve plans; the more of one is coarse, the worse it searches and the better it finishes.

    Searched losses rise by 0.3 % a plan, which the search text cannot tell apart, while finishing
    takes off 40 % of what is coarse, whose share rises by 8 % a plan. So the last plan of the
    search is the best finished one. They form three groups of four alike.
    """

    records: Sequence[TrialRecord] = tuple(
        trial(n, 1.003**n, 0.1, a=n // 4, b=n) for n in range(12)
    )
    contexts: Sequence[Any] = (context({}),)
    effort: SearchConfig = THREE
    made: list[int] = field(default_factory=list)

    def shares(self, record):
        return {"w2": 0.08 * record.number, "w4": 1 - 0.08 * record.number}

    def make(self, record: TrialRecord) -> FinishedRecord:
        self.made.append(record.number)
        return finished(record, record.loss * 0.6 ** self.shares(record)["w2"])


def test_where_finishing_turns_the_order_the_study_goes_on_to_the_best_plan():
    toy = Toy()
    more = [(record.number, expected) for record, expected in toy.finish(toy.make)]
    assert toy.made == [0, 4, 8, 11], "one of each group, then the last of the search"
    assert [number for number, _ in more] == [11], "then nothing is expected to be better"
    assert more[0][1] == pytest.approx(1.003**11 * 0.6 ** (0.08 * 11), rel=0.1)


def test_going_on_is_capped_and_needs_a_contradiction():
    capped = Toy(effort=SearchConfig(finalists=3, more_finalists=0))
    assert list(capped.finish(capped.make)) == []
    agreed = Toy()
    assert list(agreed.finish(lambda record: finished(record, 0.7 * record.loss))) == []
    everything = {record.number: agreed.make(record) for record in agreed.records}
    assert contradicted(agreed.records, everything)
    assert next_finalist(agreed.records, everything, agreed.shares) is None, "nothing is left"


def test_the_same_plans_are_asked_for_whatever_the_order_of_the_trials():
    toy = Toy()
    again = replace(toy, records=toy.records[::-1], made=[])
    for one in (toy, again):
        assert len(list(one.finish(one.make))) == 1
    assert toy.made == again.made


def test_uniform_plans_and_those_of_smaller_budgets_are_finished_too():
    """Ten plans of 100 to 10 bytes: the best of each budget, and the two best uniform ones."""
    records = [
        replace(
            trial(n, 1 + n / 10, a=-n, origin="uniform" if n in (2, 3, 4) else "step"),
            plan_json=f'{{"plan_version": 2, "layers": {{}}, "variant": "{n}"}}',
        )
        for n in range(10)
    ]
    sizes = {record.plan: 100 - 10 * record.number for record in records}
    effort = SearchConfig(finalists=1, finish_budgets=1)
    one = Finalists(records, [context(sizes)], effort)
    assert [r.number for r in one.first] == [0, 2], "as many uniform ones as finalists, at most 2"
    three = replace(one, effort=SearchConfig(finalists=2, finish_budgets=3))
    assert [[r.number for r in pool] for pool in three.pools] == [
        list(range(10)),
        [5, 6, 7, 8, 9],
        [8, 9],
    ]
    assert [r.number for r in three.first] == [0, 1, 2, 3, 5, 6, 8, 9]


def test_a_finish_that_was_killed_goes_on_and_makes_nothing_twice(trained_llama_path, tmp_path):
    settings = {
        "model": str(trained_llama_path),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (512,),
        "data.heldout_tokens": 512,
        "budget.max_bytes": 45_000,
        "space.name": "bits",
        "search.trials": 8,
        "search.baselines": 3,
        "search.finalists": 2,
        "search.more_finalists": 1,
        "search.finish": "none",
    }
    search = Search(load_config(None, settings), tmp_path, None, Silent())
    search.run_trials(search.contexts())
    plain, calls = search.finish, []

    def finish(number):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(number)
        return plain(number)

    search.finish = finish
    with pytest.raises(KeyboardInterrupt):
        search.finish_finalists()
    assert len(search.study.finished()) == 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("artefacts/*/plan.json")}
    again = Search(search.config, tmp_path, None, Silent())
    again.finish_finalists()
    assert len(files) == 2
    assert all(path.stat().st_mtime_ns == made for path, made in files.items())
    done = {record.number: record for record in again.study.finished()}
    assert set(calls) < set(done)
    found = summarise(again.study, tmp_path).to_json()["rank_correlation"]
    assert found is None if len(done) < 3 else found["pairs"] == len(done)

    feasible = [record for record in again.study.records() if record.feasible]
    context = stored_context(again.config, again.study, tmp_path, "base")
    chosen = Finalists(feasible, [context], again.config.search)
    assert {record.number for record in chosen.first} <= set(done)
    for record in feasible:
        shares = chosen.shares(record)
        assert sum(shares.values()) == pytest.approx(1)
        bits = {token for spec in record.plan.layers.values() if (token := spec.quantizer)}
        assert len(shares) >= len({spec.bits for spec in bits}), "the embedding has its own"
