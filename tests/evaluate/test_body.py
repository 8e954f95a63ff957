"""A body that goes on from kept hidden states computes the same bits as one that does not."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from autocomp.core.errors import ConfigError, PlanError
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.evaluate import body as body_module
from autocomp.evaluate.body import PLANS, Body, KeptStates, batch_windows, plan_states
from autocomp.evaluate.head import final_hidden
from autocomp.formats.base import Operands
from autocomp.layers.apply import Candidate
from autocomp.models import build_sketch, load
from autocomp.models.structure import decoder_blocks
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.models.weights import get_weight, is_norm

CPU = torch.device("cpu")
WINDOWS = torch.randint(3, 260, (5, 24), generator=torch.Generator().manual_seed(0))
BATCHES = ([0, 1], [2, 3], [4])
PLENTY = 1 << 30


class Models:
    """A model that takes the form of one plan after another, weights rounded as specs say."""

    def __init__(self, model: PreTrainedModel, sketch: Sketch) -> None:
        self.model, self.sketch = model, sketch
        self.candidate = Candidate(model, sketch)
        compress = load_object("autocomp.methods.compose:compress")
        dense = {s.name: get_weight(model, s.name).float().clone() for s in sketch.weights()}

        @cache
        def fetch(site: str, spec: LayerSpec) -> Operands:
            operands: Operands = compress(dense[site], spec, None, sketch.dtype).operands()
            return operands

        self.fetch = fetch

    def apply(self, plan: Plan) -> tuple[str, ...]:
        self.candidate.apply(plan, self.fetch)
        return plan_states(self.sketch, plan)

    def direct(self) -> Tensor:
        return torch.cat([final_hidden(self.model, WINDOWS[batch]) for batch in BATCHES])


def plan(tokens: Mapping[str, str]) -> Plan:
    return Plan({site: LayerSpec.parse(token) for site, token in tokens.items()})


def plans(sketch: Sketch) -> list[Plan]:
    """Plans whose first and last blocks differ by every kind of change, some more than once."""
    linears = {block: [s for s in sketch.weights() if s.block == block] for block in (0, 1)}
    (first_attention, _, last_attention, last_mlp) = (s.name for s in sketch.subblocks())
    base = {site.name: "rtn-w4g16" for site in sketch.weights() if site.kind != "head"}
    late = {linears[1][-1].name: "rtn-w8-sym+absmax-a8"}
    cached, early_cached = (
        {f"{n}.cache": "kivi-k2v2g4r8"} for n in (last_attention, first_attention)
    )
    bypassed = {first_attention: "bypass"} | dict.fromkeys(
        sketch[first_attention].members, "dense"
    )
    return [
        plan(base | changes)
        for changes in (
            {},
            late,
            {last_mlp: "bypass"},
            cached,
            bypassed,
            bypassed | {last_attention: "bypass"},
            bypassed | late | cached,
            {linears[0][0].name: "rtn-w8-sym+absmax-a8"},
            early_cached,
            early_cached | cached | late,
            {sketch.sites[0].name: "rtn-w8"},
            {},
            late,
        )
    ]


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counter[int]]:
    """Count the passes that each block computes, by its first norm."""
    runs: Counter[int] = Counter()
    handles = []
    for index, block in enumerate(decoder_blocks(model)):
        norm = next(child for child in block.children() if is_norm(child))
        handles.append(norm.register_forward_hook(lambda *_, index=index: runs.update([index])))
    yield runs
    for handle in handles:
        handle.remove()


def run(body: Body, model: PreTrainedModel, state: tuple[str, ...] | None) -> Tensor:
    return torch.cat([hidden for _, hidden in body.hidden(model, range(len(WINDOWS)), state)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_changes_no_bit(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    loaded = load(str(tiny(family, tmp_path / family)), dtype=dtype)
    models = Models(loaded.model, loaded.sketch)
    body = Body(WINDOWS, batch_size=2, keep_bytes=PLENTY)
    tried = plans(loaded.sketch)
    with counted(loaded.model) as runs:
        outputs = [run(body, loaded.model, models.apply(one)) for one in tried]
    fronts = {plan_states(loaded.sketch, one)[1] for one in tried}
    assert len(fronts) == 5 < len(tried)
    assert runs == {0: len(BATCHES) * len(fronts), 1: len(BATCHES) * len(tried)}
    for one, output in zip(tried, outputs, strict=True):
        models.apply(one)
        assert torch.equal(output, models.direct())
    distinct = {output.float().numpy().tobytes() for output in outputs}
    assert len(distinct) == len(set(tried))


def deep(blocks: int) -> Models:
    config = LlamaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=64, num_hidden_layers=blocks,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return Models(model, build_sketch(model, "deep", dtype="bfloat16"))


def change(block: int, token: str) -> Plan:
    return plan({f"model.layers.{block}.mlp.up_proj": token})


def state_bytes() -> int:
    return WINDOWS.numel() * 64 * 4


def test_the_deepest_kept_state_is_used() -> None:
    models = deep(6)
    body = Body(WINDOWS, batch_size=2, keep_bytes=PLENTY)
    assert body.boundaries(models.model) == [1, 2, 3, 4, 5]
    run(body, models.model, models.apply(plan({})))
    for block, token in (
        (4, "rtn-w3"),
        (1, "rtn-w4"),
        (5, "rtn-w4"),
        (4, "rtn-w2"),
        (0, "rtn-w4"),
    ):
        state = models.apply(change(block, token))
        with counted(models.model) as runs:
            output = run(body, models.model, state)
        assert runs == dict.fromkeys(range(block, 6), len(BATCHES))
        assert torch.equal(output, models.direct())


def test_boundaries_are_spread_over_what_the_bytes_allow() -> None:
    models = deep(6)

    def boundaries(states: float) -> list[int]:
        return Body(WINDOWS, batch_size=2, keep_bytes=int(states * state_bytes())).boundaries(
            models.model
        )

    assert boundaries(PLANS - 0.1) == []
    assert boundaries(PLANS) == [3]
    assert boundaries(2 * PLANS) == [2, 4]
    assert boundaries(100 * PLANS) == [1, 2, 3, 4, 5]


def test_a_plan_that_others_start_from_outlives_them() -> None:
    models = deep(6)
    limit = 2 * PLANS * state_bytes()
    body = Body(WINDOWS, batch_size=2, keep_bytes=limit)
    run(body, models.model, models.apply(plan({})))
    for bits in (2, 3, 4, 5, 6, 8):
        state = models.apply(change(3, f"rtn-w{bits}"))
        with counted(models.model) as runs:
            run(body, models.model, state)
        assert sorted(runs) == [2, 3, 4, 5]
        assert body.kept.nbytes <= limit
    assert body.kept.nbytes == 2 * state_bytes() + 6 * state_bytes()  # the start, late changes
    with counted(models.model) as runs:
        run(body, models.model, models.apply(plan({})))
    assert sorted(runs) == [4, 5]


def test_kept_states_never_exceed_their_bytes() -> None:
    kept = KeptStates(100)
    tensors = {
        name: torch.zeros(size) for name, size in (("a", 10), ("b", 10), ("c", 5), ("d", 30))
    }
    for name in "abc":
        kept.put((name, (0,)), tensors[name])
    assert kept.nbytes == 100
    assert kept.get(("a", (0,))) is tensors["a"]
    kept.put(("e", (0,)), torch.zeros(1))
    assert kept.get(("b", (0,))) is None  # the oldest unused one
    assert kept.get(("a", (1,))) is None  # other windows
    assert kept.nbytes == 64
    kept.put(("d", (0,)), tensors["d"])
    assert kept.get(("d", (0,))) is None
    assert kept.nbytes == 64


def test_without_a_state_nothing_is_kept_or_used() -> None:
    models = deep(2)
    body = Body(WINDOWS, batch_size=2, keep_bytes=PLENTY)
    with counted(models.model) as runs:
        first, again = run(body, models.model, None), run(body, models.model, None)
    assert torch.equal(first, again)
    assert runs == {0: 2 * len(BATCHES), 1: 2 * len(BATCHES)}
    assert body.kept.nbytes == 0


def test_other_batches_do_not_share_states() -> None:
    models = deep(2)
    body = Body(WINDOWS, batch_size=2, keep_bytes=PLENTY)
    state = models.apply(plan({}))
    run(body, models.model, state)
    with counted(models.model) as runs:
        chosen = [batch for batch, _ in body.hidden(models.model, [1, 2, 4], state)]
    assert chosen == [[1, 2], [4]]
    assert runs == {0: 1, 1: 2}  # [4] was a batch before, [1, 2] was not


def test_a_state_names_exactly_what_is_in_front_of_it(tmp_path: Path) -> None:
    sketch = load(str(tiny("llama-untied", tmp_path / "m"))).sketch
    layer = "model.layers.{}"
    base = plan_states(sketch, Plan({}))
    assert len(set(base)) == sketch.num_layers + 1

    def differs(tokens: Mapping[str, str], start: Plan | None = None) -> list[bool]:
        before = plan_states(sketch, start or Plan({}))
        merged = Plan(dict((start or Plan({})).layers) | dict(plan(tokens).layers))
        return [a != b for a, b in zip(before, plan_states(sketch, merged), strict=True)]

    attention = layer.format(0) + ".self_attn"
    assert differs({"lm_head": "rtn-w4"}) == [False, False, False]
    assert differs({"model.embed_tokens": "rtn-w4"}) == [True, True, True]
    assert differs({layer.format(0) + ".mlp.up_proj": "rtn-w4"}) == [False, True, True]
    assert differs({layer.format(1) + ".mlp.up_proj": "rtn-w4"}) == [False, False, True]
    assert differs({layer.format(1) + ".self_attn.cache": "kivi-k4v4"}) == [False, False, True]
    assert differs({attention: "bypass"}) == [False, True, True]
    assert differs({"model.embed_tokens": "dense"}) == [False, False, False]
    inert = {attention + ".q_proj": "rtn-w4", attention + ".cache": "kivi-k4v4"}
    assert differs(inert, plan({attention: "bypass"})) == [False, False, False]
    assert not set(base) & set(plan_states(sketch, Plan({}, variant="flap-p80")))
    assert not set(base) & set(plan_states(sketch, Plan({}, recovery="lora-r8")))


def test_a_state_must_fit_the_model() -> None:
    models = deep(2)
    body = Body(WINDOWS, batch_size=2)
    with pytest.raises(PlanError, match="2 states of a plan were given for 2 blocks"):
        run(body, models.model, ("a", "b"))


class OutOfMemory:
    """A block that has memory for so many windows."""

    def __init__(self, model: PreTrainedModel, windows: int) -> None:
        self.windows = windows
        self.failed = 0
        decoder_blocks(model)[1].register_forward_hook(self)

    def __call__(self, _: object, __: object, output: Tensor) -> None:
        if len(output) > self.windows:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_smaller_batches_after_running_out_of_memory() -> None:
    models = deep(3)
    state = models.apply(plan({}))
    memory = OutOfMemory(models.model, 2)
    body = Body(WINDOWS, batch_size=4, keep_bytes=PLENTY)
    found = list(body.hidden(models.model, range(5), state))
    assert [chosen for chosen, _ in found] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([hidden for _, hidden in found]), models.direct())
    assert memory.failed == 1
    assert body.batch_size == 2
    assert body.kept.max_bytes == PLENTY // 2
    assert run(body, models.model, state).shape == (5, 24, 64)
    assert memory.failed == 1


def test_a_window_that_does_not_fit_is_an_error() -> None:
    models = deep(3)
    OutOfMemory(models.model, 0)
    body = Body(WINDOWS, batch_size=4, keep_bytes=PLENTY)
    with pytest.raises(ConfigError, match="a window of 24 tokens does not fit the memory of cpu"):
        run(body, models.model, models.apply(plan({})))
    assert not any("forward" in block.__dict__ for block in decoder_blocks(models.model))


class TupleBlock(LlamaDecoderLayer):
    """A block as GPT-2, GPT-NeoX, OPT and Phi have it in transformers 5.0."""

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        return super().forward(*args, **kwargs), None


class TupleModel(LlamaModel):
    """A model that unpacks what such blocks return."""

    def forward(self, *args: object, **kwargs: object) -> object:
        handles = [
            block.register_forward_hook(lambda _, __, output: output[0]) for block in self.layers
        ]
        try:
            return super().forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()


def test_blocks_that_return_tuples() -> None:
    models = deep(4)
    models.model.model.__class__ = TupleModel
    for block in decoder_blocks(models.model):
        block.__class__ = TupleBlock
    body = Body(WINDOWS, batch_size=2, keep_bytes=PLENTY)
    run(body, models.model, models.apply(plan({})))
    state = models.apply(change(2, "rtn-w3"))
    with counted(models.model) as runs:
        output = run(body, models.model, state)
    assert sorted(runs) == [2, 3]
    assert torch.equal(output, models.direct())


def test_batches_by_speed_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch = deep(2).sketch
    card = torch.device("cuda")

    def windows(length: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> int:
        return batch_windows(sketch, length, device, dtype)

    assert windows(512, CPU) == 4
    assert windows(4096, CPU) == 1
    monkeypatch.setattr(body_module, "memory_bytes", lambda _: 80 * 2**30)
    assert windows(512, card) == 64
    monkeypatch.setattr(body_module, "memory_bytes", lambda _: 2**24)
    assert 1 < windows(512, card, torch.float32) < windows(512, card) < 64
    monkeypatch.setattr(body_module, "memory_bytes", lambda _: 2**10)
    assert windows(512, card) == 1
