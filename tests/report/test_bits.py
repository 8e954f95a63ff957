"""The map of bits of a plan."""

import pytest

from autocomp.core.plan import Plan
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.report.bits import bits_map


def sketch() -> Sketch:
    sites = [Site("embed", "embedding", "embed", (256, 64))]
    for block in range(2):
        members = (f"b{block}.mlp.up", f"b{block}.mlp.down")
        sites += [
            Site(members[0], "linear", "up", (128, 64), block),
            Site(members[1], "linear", "down", (64, 128), block),
            Site(f"b{block}.mlp", "subblock", "mlp", block=block, members=members),
        ]
    return Sketch(
        model="m", family="llama", sites=tuple(sites), rest={}, dtype="float16",
        groups=tuple((site.name,) for site in sites), num_layers=2, num_kv_heads=1, head_dim=64,
        hidden_size=64, intermediate_size=128, vocab_size=256,
    )  # fmt: skip


def test_bits_count_scales_and_zeros():
    found = bits_map(
        sketch(),
        Plan({
            "b0.mlp.up": LayerSpec.parse("rtn-w4g64"),
            "b0.mlp.down": LayerSpec.parse("rtn-w8g64-sym"),
            "b1.mlp": LayerSpec.parse("bypass"),
        }),
    )  # fmt: skip
    assert found.roles == ("up", "down")
    assert found.blocks == 2
    assert found.bits[0][0] == pytest.approx(4 + 16 / 64 + 8 / 64, abs=0.07)
    assert found.bits[1][0] == pytest.approx(8 + 16 / 64)
    assert found.bits[0][1] == 0
    assert "b1.mlp" in found.tokens[0][1]
    assert found.outside == (("embed", "dense", 16.0),)


def test_a_role_that_a_block_lacks_is_none():
    full = sketch()
    fewer = Sketch(
        **{
            name: getattr(full, name)
            for name in Sketch.__dataclass_fields__
            if name != "sites"
        },
        sites=tuple(site for site in full.sites if site.name != "b1.mlp.up"),
    )  # fmt: skip
    assert bits_map(fewer, Plan({})).bits[0] == (16.0, None)
