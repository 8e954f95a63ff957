"""The walk-through of CONTRIBUTING.md, run: a throw-away method of every scope, end to end."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.registry import METHODS
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.cost.bytes import weight_bytes
from autocomp.cost.memory import plan_cache_bytes
from autocomp.layers.native import load, native_sketch, read_plan
from autocomp.methods import compose
from autocomp.models.tiny import tiny, train_tiny
from autocomp.report.methods import method_rows
from autocomp.search.finish import write_artefact
from autocomp.search.recover import recover_trial
from autocomp.search.run import run_search
from autocomp.search.variants import VariantBench
from autocomp.search.workbench import Workbench

ROOT = Path(__file__).resolve().parents[1]
TOKENS = torch.arange(5, 69).reshape(1, 64)
TEXT = "\n\n".join(
    f"The {n}th paragraph says that {n} and {n + 1} are {2 * n + 1}." for n in range(900)
)


def examples() -> dict[str, str]:
    """Return the code of every method of the page by its name in ``METHODS``."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```$", page, re.M | re.S)
    texts = [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in blocks]
    found = {}
    for text in texts:
        name = re.search(r'method: ClassVar\[str\] = "(\w+)"', text)
        if name:
            found[name[1]] = text
    return found


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Register every method of the page, as its table line would."""
    found = {}
    for name, text in examples().items():
        module = ModuleType(f"autocomp.methods.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(text, module.__name__, "exec"), module.__dict__)
        (kind,) = [
            value.__name__
            for value in vars(module).values()
            if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "summary")
        ]
        monkeypatch.setitem(METHODS.table, name, f"{module.__name__}:{kind}")
        found[name] = METHODS[name]
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a small trained model."""
    folder = tiny("llama", tmp_path_factory.mktemp("model") / "llama")
    train_tiny(folder, TEXT, steps=60)
    return str(folder)


@pytest.fixture
def config_of(model: str, tmp_path: Path) -> Callable[..., StudyConfig]:
    """Return a function that makes the study configuration of that model."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    sizes = {f"data.{name}": 1024 for name in ("calibration_tokens", "heldout_tokens")}

    def make(**changes: object) -> StudyConfig:
        fixed = {"model": model, "data.corpus": str(text), "data.window": 64, "data.rungs": [64]}
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return load_config(None, {**fixed, **sizes, "search.finish": "none", **named})

    return make


def finished(bench: Workbench, plan: Plan, folder: Path) -> torch.nn.Module:
    """Finish a plan, check its size, and load it."""
    write_artefact(bench, plan, folder, {}, Silent())
    size = (folder / "model.safetensors").stat().st_size
    assert size == weight_bytes(native_sketch(folder), read_plan(folder))
    return load(folder, dtype=torch.float32)


def uniform(bench: Workbench, linear: str, cache: str = "dense", variant: str = BASE) -> Plan:
    """Return a plan with one token for all linears and one for all caches."""
    tokens = {"linear": LayerSpec.parse(linear), "cache": LayerSpec.parse(cache)}
    return Plan({s.name: tokens.get(s.kind, DENSE) for s in bench.sketch.sites}, variant)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def test_the_page_has_a_method_of_every_scope(added: dict[str, type]) -> None:
    scopes = {method.scope for method in added.values()}
    assert scopes == {"site", "input", "block", "cache", "architecture", "model", "data"}
    listed = {row.name: row for row in method_rows()}
    for name, method in added.items():
        assert listed[name].kind == method.scope
        assert listed[name].token.startswith("`")


def weight_error(bench: Workbench, model: torch.nn.Module) -> float:
    """Return the mean relative error of the linears' weights."""
    errors = []
    for site in bench.sketch.weights():
        if site.kind == "linear":
            exact = bench.weight(site.name)
            found = model.get_submodule(site.name).compressed().to_dense()
            errors.append(float((found - exact).norm() / exact.norm()))
    return sum(errors) / len(errors)


def test_residual(added: dict, config_of: Callable, tmp_path: Path) -> None:
    bench = Workbench(config_of())
    tokens = ("rtn-w3g16", "rtn-w3g16+plainlorc-r4", "rtn-w3g16+plainlorc-r16")
    errors = [
        weight_error(bench, finished(bench, uniform(bench, token), tmp_path / token))
        for token in tokens
    ]
    assert errors == sorted(errors, reverse=True), "the higher the rank, the less is lost"


def test_input(added: dict, config_of: Callable, tmp_path: Path) -> None:
    bench = Workbench(config_of())
    model = finished(bench, uniform(bench, "rootscale+rtn-w8g16"), tmp_path / "made")
    exact = logits(bench.model).float()
    assert (logits(model) - exact).norm() < 0.1 * exact.norm(), "8 bits change little"
    plan = read_plan(tmp_path / "made")
    assert plan["model.layers.0.self_attn.q_proj"].token() == "rootscale-folded+rtn-w8g16"


def test_cache(added: dict, config_of: Callable, tmp_path: Path) -> None:
    bench = Workbench(config_of(budget__max_memory="1MB"))
    plan = uniform(bench, "dense", cache="int8cache")
    packed = plan_cache_bytes(bench.sketch, plan, context=100, batch=1)
    assert packed < 0.6 * plan_cache_bytes(bench.sketch, Plan({}), context=100, batch=1)
    model = finished(bench, plan, tmp_path / "made")
    assert {spec.token() for spec in read_plan(tmp_path / "made").layers.values()} == {
        "dense",
        "int8cache",
    }
    written = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert written.shape == (1, 68)


def test_architecture(added: dict, config_of: Callable, tmp_path: Path) -> None:
    base = Workbench(config_of(space__variants=["firstwidth-p75"]))
    bench = VariantBench(base, "firstwidth-p75")
    plan = uniform(bench, "rtn-w8g16", variant="firstwidth-p75")
    finished(bench, plan, tmp_path / "made")
    widths = {s.shape[0] for s in native_sketch(tmp_path / "made").sites if s.role == "up_proj"}
    assert widths == {96}, "three quarters of 128"


def test_block(added: dict, config_of: Callable, tmp_path: Path) -> None:
    plain, fitted = Workbench(config_of()), Workbench(config_of(search__finish="rescale"))
    exact, plan = logits(plain.model), uniform(plain, "rtn-w3g16")
    before = logits(finished(plain, plan, tmp_path / "plain"))
    after = logits(finished(fitted, plan, tmp_path / "fitted"))
    assert not torch.equal(before, after)
    assert (after - exact).norm() < 1.2 * (before - exact).norm()


def test_model(added: dict, config_of: Callable, tmp_path: Path) -> None:
    settings = {
        "space__linear": ["rtn-w4g16"],
        "space__embedding": ["rtn-w8g16"],
        "space__bypass": False,
        "budget__max_bytes": "1MB",
        "search__trials": 1,
        "search__finalists": 1,
    }
    study = tmp_path / "study"
    run_search(config_of(**settings), study_dir=study, storage=None, progress=Silent())
    found = recover_trial(study, None, 0, "gain-4", Silent())
    assert found.after.recovery == "gain-4"
    assert found.after.weight_bytes == found.before.weight_bytes
    assert read_plan(study / found.after.artefact).recovery == "gain-4"


def test_data(added: dict, config_of: Callable) -> None:
    bench = Workbench(config_of(data__calibration="randomtext"))
    ids = bench.calibration.input_ids
    assert ids.shape == (16, 64)
    assert len(ids.unique()) > 100, "nearly all of the 264 tokens"


def test_site_without_a_model(added: dict) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    for token, kept in {"random-s25": 384, "random-2:4": 256, "random-s50+rtn-w8g32": 256}.items():
        spec = LayerSpec.parse(token)
        assert spec.token() == token
        done = compose.compress(weight, spec, None, "float16")
        assert done.nbytes == compose.layout(spec, (8, 64), "float16").nbytes
        dense = done.to_dense()
        assert torch.count_nonzero(dense) <= kept
        near = (dense - weight).abs() <= 0.02  # fp16, or a step of 8-bit rounding
        assert near.sum() >= kept
