"""A text dealt anew: the same documents in other parts, for repeated experiments."""

import json
from pathlib import Path

from autocomp.core.seeds import SeedTree
from autocomp.data.corpus import SPLITS, load_corpus


def dealt(corpus: str, seed: int, folder: Path, name: str | None = None) -> Path:
    """Write a text with its documents in an order of the seed, which deals them to other parts.

    Args:
        corpus: What :func:`~autocomp.data.load_corpus` reads.
        seed: Of the order.
        folder: Where the file is written; made where it does not exist.
        name: Of the file, without its ending; the corpus' own when ``None``.

    Returns:
        Path of the ``.jsonl`` file.

    Raises:
        ConfigError: If the corpus cannot be read.
    """
    text = load_corpus(corpus)
    documents = [document for split in SPLITS for document in text.documents(split)]
    order = SeedTree(seed).child("documents").numpy().permutation(len(documents))
    path = folder / f"{name or Path(corpus).stem}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": documents[index]}) for index in order)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
