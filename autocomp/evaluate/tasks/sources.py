"""Finding a dataset's file and reading its rows; errors name file, line and what is expected."""

import bz2
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeGuard

from autocomp.core.errors import ConfigError

Row = dict[str, Any]
SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Adapter:
    """How a local file becomes the rows of a hub data set.

    Args:
        path: Pattern of the path below the data folder, whose own name counts too; lower case.
        names: Patterns of the file's name, best first; lower case.
        rows: Reads a file as rows with the columns that lm-eval's task reads from the hub.
    """

    path: str
    names: tuple[str, ...]
    rows: Callable[[Path], Iterator[Row]]

    def find(self, data_dir: Path) -> Path:
        """Return the dataset's file.

        Args:
            data_dir: Searched with all folders below.

        Raises:
            ConfigError: If there is none, or several that are equally good.
        """
        top = data_dir.expanduser().resolve()
        if not top.is_dir():
            raise ConfigError(f"{data_dir} is no folder; --data-dir takes one that holds data.")
        files = [
            path
            for path in sorted(top.rglob("*"))
            if path.is_file() and fnmatchcase(_below(path, top), self.path)
        ]
        for pattern in self.names:
            found = [path for path in files if fnmatchcase(path.name.lower(), pattern)]
            if len(found) > 1:
                raise ConfigError(
                    f"{data_dir} holds several files {pattern} under {self.path}: "
                    f"{', '.join(str(path.relative_to(top)) for path in found)}. Name a folder "
                    "that holds one of them."
                )
            if found:
                return found[0]
        raise ConfigError(
            f"{data_dir} holds no file called {' or '.join(self.names)} whose path matches "
            f"{self.path}, in any case."
        )


def _below(path: Path, top: Path) -> str:
    """Return a path from the name of the data folder on, in lower case."""
    return f"{top.name}/{path.relative_to(top).as_posix()}".lower()


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object of a file.

    Args:
        where: File and line, for errors.
        values: The object.
    """

    where: str
    values: Row

    def error(self, expected: str) -> ConfigError:
        """Return the error of a row that is not what it should be."""
        shown = json.dumps(self.values, ensure_ascii=False)
        if len(shown) > SHOWN_CHARACTERS:
            shown = f"{shown[:SHOWN_CHARACTERS]}…"
        return ConfigError(f"{self.where}: expected {expected}; got {shown}")

    def text(self, name: str, *, empty: bool = False) -> str:
        """Return a column that is text, by default not an empty one."""
        value = self.values.get(name)
        if not isinstance(value, str) or not (value.strip() or empty):
            raise self.error(f"{name!r} with text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a column that is a list of at least two texts."""
        value = self.values.get(name)
        if not are_texts(value):
            raise self.error(f"{name!r} with a list of texts")
        return value

    def one_of(self, names: Sequence[str], allowed: Collection[Any]) -> Any:
        """Return the first column of those names, which holds one of the allowed values."""
        value = next((self.values[name] for name in names if name in self.values), None)
        if not isinstance(value, str | int) or value not in allowed:
            raise self.error(
                f"{' or '.join(map(repr, names))} to be one of {', '.join(map(repr, allowed))}"
            )
        return value


def are_texts(value: Any) -> TypeGuard[list[str]]:
    """Whether something is a list of at least two texts, none of them empty."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(text, str) and text.strip() for text in value)


def text_of(path: Path) -> str:
    """Return a UTF-8 file's text, unpacked when it ends in ``.bz2``; line ends are kept.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        data = path.read_bytes()
        return (bz2.decompress(data) if path.suffix == ".bz2" else data).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file; blank lines are passed over.

    Raises:
        ConfigError: If a line is no JSON object.
    """
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: expected a JSON object: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a JSON object, got {line[:SHOWN_CHARACTERS]}")
        yield Record(where, values)
