"""The contract that every allocation fulfils, as functions to call from any test runner.

:func:`toy_sites` makes what a profile sees; the ``check_…`` functions raise ``AssertionError`` on
a breach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from autocomp.core.registry import ALLOCATIONS
from autocomp.core.seeds import SeedTree
from autocomp.search.allocations.base import AllocatedSite, Allocation, parse_allocation

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
TARGETS = (0.15, 0.3, 0.5, 0.62, 0.8, 0.99, 1.0)
EXACT = 1e-9


def toy_sites(count: int = 12, seed: int = 0) -> list[AllocatedSite]:
    """Return linears of unequal sizes with drawn signals, and losses that fall with the share."""
    rng = SeedTree(seed).child("sites").numpy()
    found = []
    for place in range(count):
        scale = rng.lognormal()
        found.append(
            AllocatedSite(
                name=f"site {place}",
                weights=int(rng.integers(64, 4096)),
                signal=float(rng.lognormal()),
                losses={share: scale * (1.0 - share) ** 2 for share in SHARES},
            )
        )
    return found


def mean_share(sites: Sequence[AllocatedSite], shares: Mapping[str, float]) -> float:
    """Return the mean over all weights."""
    total = sum(site.weights for site in sites)
    return sum(shares[site.name] * site.weights for site in sites) / total


def check_described(name: str) -> None:
    """An allocation says what it is, and its token names it."""
    found: type[Allocation] = ALLOCATIONS[name]
    assert found.name == name
    assert found.slot in ("mask", "factor")
    assert found.summary
    assert found.reference.startswith("https://")
    assert found.version >= 1
    assert found().token() == name
    assert parse_allocation(name) == found()


def check_target(allocation: Allocation) -> None:
    """The mean over all weights is the target, or less than one site's decision below it."""
    sites = toy_sites()
    step = 0.0 if allocation.slot == "mask" else max(s.weights for s in sites)
    step /= sum(site.weights for site in sites)
    for target in TARGETS:
        shares = allocation.profile(sites, target)
        assert shares.keys() == {site.name for site in sites}
        assert all(0 < share <= 1 for share in shares.values())
        assert target - step - EXACT <= mean_share(sites, shares) <= target + EXACT


def check_monotone(allocation: Allocation) -> None:
    """Nobody keeps less where more is to be kept, and at 1 everybody keeps everything."""
    sites = toy_sites(seed=1)
    profiles = [allocation.profile(sites, target) for target in TARGETS]
    for less, more in pairwise(profiles):
        assert all(less[name] <= more[name] + EXACT for name in less)
    assert set(profiles[-1].values()) == {1.0}


def check_units(allocation: Allocation) -> None:
    """Neither the unit of signals and losses nor the order of the sites changes a share."""
    sites = toy_sites(seed=2)
    scaled = [
        replace(
            site,
            signal=8 * site.signal,
            losses={share: 8 * loss for share, loss in site.losses.items()},
        )
        for site in sites
    ]
    for target in TARGETS:
        shares = allocation.profile(sites, target)
        for other in (scaled, sites[::-1]):
            found = allocation.profile(other, target)
            assert all(abs(found[name] - shares[name]) < EXACT for name in shares)
