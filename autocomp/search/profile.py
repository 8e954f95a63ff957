"""What a study learned of its model, in words that another model understands.

A study corrects the score of every option by factors that it fits to measured plans. Part of them
is its model's own, part is the same in every model: coarse options are worse than their scores
say, and so are, by how much, the first and last blocks and some roles. A profile holds those parts
without names of sites: by class of option, and by role and relative depth, 0 for the first
decoder block and 1 for the last. It moves the means of the priors of another study's correction
and leaves their widths, so that what is measured there takes over; how far to follow it is one
more thing to learn there.

Reference: Vanschoren 2018, Meta-Learning: A Survey, https://arxiv.org/abs/1810.03548, section 2.3
(warm starts from similar tasks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autocomp.core.sketch import Sketch
from autocomp.search.correction import Correction
from autocomp.search.knapsack import Floats, Problem


def site_type(sketch: Sketch, name: str) -> str:
    """Return what a site is in any decoder: ``attention input`` for q, k and v, ``mlp output``.

    Sub-blocks are ``attention`` and ``mlp``; anything else is its kind.
    """
    site = sketch[name]
    if site.kind not in ("linear", "subblock"):
        return site.kind
    owner = name if site.kind == "subblock" else sketch.owner[name]
    inside = [other.name for other in sketch.subblocks() if other.block == site.block]
    part = "attention" if owner == inside[0] else "mlp"
    if site.kind == "subblock":
        return part
    linears = [member for member in sketch[owner].members if sketch[member].kind == "linear"]
    return f"{part} {'output' if name == linears[-1] else 'input'}"


def relative_depth(sketch: Sketch, name: str) -> float:
    """Return 0 in the first decoder block, 1 in the last, and 0 outside of blocks."""
    return max(sketch[name].block, 0) / max(sketch.num_layers - 1, 1)


@dataclass(frozen=True, slots=True)
class SiteEffect:
    """The factor of one site.

    Args:
        role: The last part of its name, such as ``q_proj``.
        type: What it is in any decoder, such as ``attention input``.
        depth: Relative depth.
        value: Its log factor, that of its role included.
    """

    role: str
    type: str
    depth: float
    value: float


@dataclass(frozen=True)
class Profile:
    """The log factors of a study's correction, free of the names of its model.

    Args:
        metric: Name of the study's loss; ``common`` is in its unit.
        score: Name of the score that was corrected; factors of another one are other factors.
        common: Log factor of all options.
        classes: Log factor by class of option, such as ``w3``.
        sites: Log factors of sites.
    """

    metric: str
    score: str
    common: float
    classes: Mapping[str, float]
    sites: tuple[SiteEffect, ...]

    @classmethod
    def of(cls, correction: Correction, sketch: Sketch, metric: str, score: str) -> "Profile":
        """Return the profile of a fitted correction.

        Args:
            correction: Fitted from priors that no profile has moved.
            sketch: The model that it is of.
            metric: Name of the loss.
            score: Name of the score.
        """
        known = dict(zip(correction.effects.keys, map(float, correction.mode), strict=True))
        roles = {name: value for (kind, name), value in known.items() if kind == "role"}
        return cls(
            metric=metric,
            score=score,
            common=known.get(("common", ""), 0.0),
            classes={name: value for (kind, name), value in known.items() if kind == "class"},
            sites=tuple(
                SiteEffect(
                    sketch[name].role,
                    site_type(sketch, name),
                    relative_depth(sketch, name),
                    value + roles.get(sketch[name].role, 0.0),
                )
                for (kind, name), value in known.items()
                if kind == "site"
            ),
        )

    def site(self, role: str, kind: str, depth: float) -> float | None:
        """Return the log factor of a site of another model, interpolated over relative depth.

        Args:
            role: Its role; where the profile lacks it, all sites of its type stand for it.
            kind: Its type.
            depth: Its relative depth.

        Returns:
            ``None`` where the profile has nothing of that type.
        """
        alike = [known for known in self.sites if known.type == kind]
        rows = [known for known in alike if known.role == role] or alike
        if not rows:
            return None
        depths, places = np.unique([row.depth for row in rows], return_inverse=True)
        total = np.bincount(places, weights=[row.value for row in rows])
        return float(np.interp(depth, depths, total / np.bincount(places)))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Profile":
        """Return the profile of its JSON form."""
        return cls(**{**data, "sites": tuple(SiteEffect(**row) for row in data["sites"])})


def transfer(
    profiles: Sequence[Profile],
    sketch: Sketch,
    problem: Problem,
    classes: Mapping[str, Sequence[str]],
    metric: str,
) -> Floats:
    """Return what profiles add to the log factor of every option, shape (options, 2).

    The first column is that of the sites, the second that of the classes. Each value is the mean
    over the profiles that know it; what none knows is 0. The common factor, a part of the second,
    counts from studies of the same metric only, for it is what a nat costs in that metric's unit.

    Args:
        profiles: Of other studies.
        sketch: The model.
        problem: Its groups and sub-blocks; options are numbered as in
            :class:`~autocomp.search.correction.Effects`.
        classes: Class of each option by group name.
        metric: Name of the loss.
    """

    def mean(values: Sequence[float | None]) -> float:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else 0.0

    common = mean([profile.common for profile in profiles if profile.metric == metric])

    def of(site: str, names: Sequence[str]) -> Floats:
        place = sketch[site].role, site_type(sketch, site), relative_depth(sketch, site)
        own = mean([profile.site(*place) for profile in profiles])
        shared = [mean([profile.classes.get(name) for profile in profiles]) for name in names]
        return np.array([[own, common + value] for value in shared])

    width, size = problem.score.shape[1], problem.score.size
    found = np.zeros((size + len(problem.bypasses), 2))
    for row, group in enumerate(problem.groups):
        names = classes[group.name]
        found[row * width : row * width + len(names)] = of(group.name, names)
    for row, bypass in enumerate(problem.bypasses):
        found[size + row] = of(bypass.name, ["bypass"])
    return found
