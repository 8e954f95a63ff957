"""The documentation says what the program does: tables, commands, snippets, links, settings."""

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import typer

from autocomp.cli.main import app
from autocomp.config import load_config, presets

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/**/*.md")])


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, dedented as Markdown does."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", path.read_text("utf-8"), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def commands() -> Iterator[list[str]]:
    """Yield the arguments of every ``autocomp`` line of the Makefile and the pages."""
    for line in re.findall(
        r"\$\(BIN\)/autocomp ([^\n\"]+)", (ROOT / "Makefile").read_text("utf-8")
    ):
        yield shlex.split(line)
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "autocomp":
                    yield words[1:]


def generator() -> ModuleType:
    """Import docs/generate.py by path."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current() -> None:
    assert not generator().stale(), "run `make docs`"


def test_the_pages_and_the_makefile_show_commands() -> None:
    assert len(list(commands())) > 12


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    command = typer.main.get_command(app)
    inner = command.get_command(
        command.make_context("autocomp", [], resilient_parsing=True), words[0]
    )
    assert inner is not None, words[0]
    inner.make_context(words[0], words[1:])  # raises a UsageError when the program would


def test_python_snippets_import_what_exists() -> None:
    snippets = [text for page in PAGES for text in blocks(page, "python")]
    assert snippets
    for text in snippets:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    assert hasattr(module, alias.name) or find_spec(inner), f"no {inner}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_make_targets_in_the_pages_exist() -> None:
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = set()
    for page in PAGES:
        text = page.read_text("utf-8")
        for words in re.findall(r"(?:^|`)make ((?:[a-z][a-z-]*(?: (?=[a-z]))?)+)", text, re.M):
            named |= set(words.split())
    assert {"demo", "test", "setup", "docs", "links"} <= named
    assert named <= rules


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("studies/*/study.yaml")), ids=lambda p: p.parent.name
)
def test_studies_are_readable(path: Path) -> None:
    assert load_config(path).model
    assert (path.parent / "README.md").exists()


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_readable(name: str) -> None:
    assert load_config(name).model


def test_license_is_the_one_declared() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")
