"""The contract that every search space fulfils, as functions to call from any test runner.

``toy_sketch`` makes architectures without a model; ``option_space`` builds a space on one; the
``check_…`` functions raise ``AssertionError`` on a breach.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from autocomp.core.plan import Plan
from autocomp.core.registry import SPACES, load_object
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Site, Sketch, TensorInfo
from autocomp.core.spec import DENSE, LayerSpec

OptionSpace = load_object("autocomp.search_spaces._options:OptionSpace")
compose_check = load_object("autocomp.methods.compose:check")
compose_layout = load_object("autocomp.methods.compose:layout")

VOCAB = 320


def toy_sketch(
    blocks: int = 2, hidden: int = 64, *, tied: bool = True, fused: bool = False
) -> Sketch:
    """Return a llama-like architecture with half as many key/value heads as query heads.

    Args:
        blocks: Decoder blocks.
        hidden: Width; the MLP is three times as wide.
        tied: Whether the head is the embedding.
        fused: Whether q/k/v, and gate and up, share one decision.
    """
    sites = [Site("model.embed_tokens", "embedding", "embed_tokens", (VOCAB, hidden))]
    groups: list[tuple[str, ...]] = [("model.embed_tokens",)]
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        shapes = {
            f"{attention}.q_proj": (hidden, hidden),
            f"{attention}.k_proj": (hidden // 2, hidden),
            f"{attention}.v_proj": (hidden // 2, hidden),
            f"{attention}.o_proj": (hidden, hidden),
            f"{mlp}.gate_proj": (3 * hidden, hidden),
            f"{mlp}.up_proj": (3 * hidden, hidden),
            f"{mlp}.down_proj": (hidden, 3 * hidden),
        }
        names = list(shapes)
        for parent, members in ((attention, names[:4]), (mlp, names[4:])):
            role = parent.rpartition(".")[2]
            sites.append(Site(parent, "subblock", role, block=block, members=tuple(members)))
            sites.extend(
                Site(name, "linear", name.rpartition(".")[2], shapes[name], block, reads=parent)
                for name in members
            )
            groups.append((parent,))
        q, k, v, o, gate, up, down = names
        together = [(q, k, v), (o,), (gate, up), (down,)]
        groups.extend(together if fused else [(name,) for name in names])
    if not tied:
        sites.append(Site("lm_head", "head", "lm_head", (VOCAB, hidden)))
        groups.append(("lm_head",))
    return Sketch(
        model="toy",
        family="llama",
        sites=tuple(sites),
        rest={"model.norm.weight": TensorInfo((hidden,), "float16")},
        dtype="float16",
        groups=tuple(groups),
        num_layers=blocks,
        num_kv_heads=2,
        head_dim=hidden // 4,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        vocab_size=VOCAB,
    )


def option_space(name: str, sketch: Sketch) -> Any:
    """Return a registered space with its default options on an architecture."""
    return OptionSpace(sketch, SPACES[name].candidates(sketch))


def random_assignment(space: Any, seed: int) -> dict[str, int]:
    """Return a uniform assignment of every parameter, inert ones included."""
    rng: np.random.Generator = SeedTree(seed).child("assignment").numpy()
    ranges = space.distributions()
    return {name: int(rng.integers(r.low, r.high + 1)) for name, r in ranges.items()}


def check_lists(sketch: Sketch, lists: Mapping[str, Sequence[LayerSpec]]) -> None:
    """Every weight group has distinct, fitting options, each readable from its token, by size."""
    named = {group[0]: group for group in sketch.groups}
    weights = {name for name in named if sketch[name].kind not in ("subblock", "cache")}
    assert weights <= set(lists) <= set(named)
    for name, options in lists.items():
        assert options, name
        assert len({spec.token() for spec in options}) == len(options), name
        assert all(LayerSpec.parse(spec.token()) == spec for spec in options), name
        if name not in weights:
            assert [spec.token() for spec in options] == ["dense", "bypass"], name
            continue
        sites = [sketch[site] for site in named[name]]
        for site in sites:
            for spec in options:
                compose_check(spec, site.kind, site.shape)
        sizes = [
            sum(compose_layout(spec, site.shape, sketch.dtype).nbytes for site in sites)
            for spec in options
        ]
        assert all(small <= large for small, large in pairwise(sizes)), (name, sizes)


def check_assignment(space: Any, params: Mapping[str, int]) -> None:
    """The laws of decode and encode hold for one assignment."""
    sketch, lists = space.sketch, space.lists
    plan: Plan = space.decode(params)
    canonical = space.encode(plan)
    assert space.decode(canonical) == plan
    assert space.encode(space.decode(canonical)) == canonical
    assert set(canonical) == set(params)
    assert Plan.from_json(plan.to_json()) == plan
    assert set(plan.layers) == {site.name for site in sketch.sites}
    dropped = {site.name for site in sketch.subblocks() if plan[site.name] != DENSE}
    for group in sketch.groups:
        active = [site for site in group if sketch.owner.get(site) not in dropped]
        inert = set(group) - set(active)
        assert all(plan[site] == DENSE for site in inert), "inside a bypass nothing is decided"
        assert len({plan[site] for site in active}) <= 1, "a group shares one decision"
        if group[0] in lists and active:
            assert plan[active[0]] == lists[group[0]][params[group[0]]]
        if group[0] in lists and not active:
            assert canonical[group[0]] == 0, "an inert parameter takes its default"
