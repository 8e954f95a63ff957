"""Measuring a model from its folder, as a user would load it."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.core.progress import Progress, Silent
from autocomp.data import Windows, load_corpus, windows
from autocomp.data.protocols import protocol_windows
from autocomp.evaluate.body import PASS_TOKENS
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.efficiency import efficiency_of_path
from autocomp.evaluate.perplexity import perplexity
from autocomp.evaluate.record import DataRead, Measurement, hardware
from autocomp.evaluate.reference import SavedReference, is_saved_reference, reference_of
from autocomp.evaluate.summary import data_read, divergence_metrics, text_metrics
from autocomp.evaluate.tasks import evaluate_tasks
from autocomp.layers.linear import Memory
from autocomp.layers.native import is_native
from autocomp.layers.native import load as load_native
from autocomp.models import load
from autocomp.models.device import compute_dtype, resolve_device

HELDOUT: Final = "heldout"


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Which text to read.

    Args:
        corpus: Name of a corpus, or a ``.txt``, ``.raw`` or ``.jsonl`` file.
        tokens: Tokens to read of a corpus' held-out part; of a protocol the most, ``None`` all.
        window: Window length, tokens; perplexities of different lengths do not compare.
        protocol: A perplexity protocol of the papers in place of a corpus.
        data_dir: Where the protocol's files lie; ``None`` is the hub.
    """

    corpus: str = "pydoc"
    tokens: int | None = None
    window: int | None = None
    protocol: str | None = None
    data_dir: str | None = None

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Windows:
        """Return the windows: 16,384 tokens in windows of 512, or a protocol's in 2,048.

        Raises:
            ConfigError: If a name is unknown or the text too short.
        """
        if self.protocol is not None:
            length = self.window or 2048
            limit = None if self.tokens is None else max(1, self.tokens // length)
            return protocol_windows(
                self.protocol, tokenizer, length=length, data_dir=self.data_dir, limit=limit
            )
        return windows(
            load_corpus(self.corpus),
            HELDOUT,
            tokenizer,
            tokens=self.tokens or 16384,
            length=self.window or 512,
        )


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which tasks of lm-eval to run.

    Args:
        names: Tasks and suites, such as ``piqa`` and ``zero-shot``.
        data_dir: Where the data sets' files lie; ``None`` is the hub.
        limit: Examples a task; ``None`` is all.
        batch_size: Examples a pass; 1 is what results are compared at.
    """

    names: tuple[str, ...]
    data_dir: str | None = None
    limit: int | None = None
    batch_size: int = 1


def load_any(
    path: str, device: torch.device, dtype: torch.dtype, memory: Memory = "decoded"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of a native folder, a Hugging Face folder or a model id.

    Args:
        path: The folder or id.
        device: Where the model is put.
        dtype: Compute dtype.
        memory: What a native model keeps; long texts are read fastest by decoded copies.
    """
    if is_native(path):
        model = load_native(path, device=str(device), dtype=dtype, memory=memory)
        return model, AutoTokenizer.from_pretrained(path)
    loaded = load(path, device=str(device), dtype=dtype)
    return loaded.model, loaded.tokenizer


def evaluate_path(
    path: str,
    *,
    text: TextRequest | None = None,
    tasks: TaskRequest | None = None,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure a model on a text and on tasks.

    Args:
        path: Native or Hugging Face folder, or a model id.
        text: What to read; the default text where there are no tasks either.
        tasks: What to answer.
        base: Model to compare with on the text, which must share the vocabulary, or a file of
            :func:`save_reference`, which brings its own text.
        device: ``auto``, ``cpu`` or ``cuda[:n]``.
        dtype: ``auto``, ``float32`` or ``bfloat16`` of the body.
        progress: Told one unit a token or example.

    Returns:
        A measurement of the text, where one was read, and one a task.

    Raises:
        ConfigError: If a name is unknown, the text too short, or the vocabularies differ.
    """
    place, shown = resolve_device(device), progress or Silent()
    model, tokenizer = load_any(path, place, compute_dtype(dtype, place))
    origin = None if base is None or is_saved_reference(base) else base
    efficiency = efficiency_of_path(path, origin)
    found: list[Measurement] = []
    if text is not None or base is not None or tasks is None:
        found.append(_text(path, model, _against(model, tokenizer, text, base, shown), shown))
    if tasks is not None:
        found += evaluate_tasks(
            model,
            tokenizer,
            tasks.names,
            data_dir=tasks.data_dir,
            limit=tasks.limit,
            batch_size=tasks.batch_size,
            progress=shown,
        )
    return [replace(measured, efficiency=efficiency) for measured in found]


@dataclass(frozen=True)
class _Against:
    """A text, and the base on it where there is one."""

    read: DataRead
    text_bytes: int
    windows: Tensor
    meter: DivergenceMeter | None


def _against(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: TextRequest | None,
    base: str | None,
    shown: Progress,
) -> _Against:
    """Return the text and the base on it; the base's model is let go again.

    Raises:
        ConfigError: If the base shares no vocabulary with the model, or two texts are given.
    """
    if base is not None and is_saved_reference(base):
        if text is not None:
            raise ConfigError(
                f"{base} holds the text that it was made on; leave out the corpus, the protocol "
                "and the sizes, or name the base model."
            )
        saved = SavedReference(Path(base), model.device)
        kept = saved.described
        _check_vocabulary(model, base, kept["vocabulary"])
        floor = kept["floors"].get(str(model.dtype), 0.0)
        meter = DivergenceMeter(saved, floor_nats=floor)
        return _Against(DataRead(**kept["data"]), kept["text_bytes"], saved.windows, meter)
    found = (text or TextRequest()).windows(tokenizer)
    plain = _Against(data_read(found), found.text_bytes, found.input_ids, None)
    if base is None:
        return plain
    body = load_any(base, model.device, model.dtype)[0]
    _check_vocabulary(model, base, body.config.vocab_size)
    batch = _batch(model, found.length)
    reference = reference_of(
        body,
        lambda: load_any(base, model.device, torch.float32)[0],
        found.input_ids,
        batch,
        shown,
    )
    return replace(plain, meter=DivergenceMeter(reference, body))


def _text(path: str, model: PreTrainedModel, against: _Against, shown: Progress) -> Measurement:
    """Return the measurement of a model on a text."""
    begun, read, meter = time.perf_counter(), against.read, against.meter
    shown.start(f"evaluating {path}", read.tokens, "token")
    if meter is None:
        nll = perplexity(
            model,
            against.windows,
            batch_size=_batch(model, read.window),
            advance=shown.advance,
        )
        metrics = text_metrics(nll, against.text_bytes, read)
    else:
        scores = meter.measure(model, range(read.units), head_token=path, advance=shown.advance)
        base_nll = meter.reference.nll_nats()
        metrics = divergence_metrics(scores, base_nll, against.text_bytes, read)
    shown.finish()
    return Measurement(
        metrics=metrics,
        data=read,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        hardware=hardware(model.device),
        seconds=time.perf_counter() - begun,
        floor_nats=None if meter is None else meter.floor_nats,
    )


def save_reference(
    path: str,
    out: Path,
    text: TextRequest | None = None,
    *,
    device: str = "auto",
) -> Path:
    """Write what the KL from a model needs to a file, so that the model need not be there again.

    Args:
        path: The base model.
        out: The file, ``.safetensors``.
        text: What to read.
        device: Where to run.
    """
    place = resolve_device(device)
    kind = compute_dtype("auto", place)
    body, tokenizer = load_any(path, place, kind)
    found = (text or TextRequest()).windows(tokenizer)
    batch = _batch(body, found.length)
    reference = reference_of(
        body, lambda: load_any(path, place, torch.float32)[0], found.input_ids, batch
    )
    floors = {str(torch.float32): 0.0, str(kind): DivergenceMeter(reference, body).floor_nats}
    out.parent.mkdir(parents=True, exist_ok=True)
    reference.save(
        out,
        {
            "model": path,
            "vocabulary": body.config.vocab_size,
            "text_bytes": found.text_bytes,
            "data": asdict(data_read(found)),
            "floors": floors,
        },
    )
    return out


def _batch(model: PreTrainedModel, length: int) -> int:
    """Return the windows of one pass."""
    return max(1, PASS_TOKENS[model.device.type] // length)


def _check_vocabulary(model: PreTrainedModel, base: str, vocabulary: int) -> None:
    """Refuse two models that do not share a vocabulary.

    Raises:
        ConfigError: Naming both sizes.
    """
    if model.config.vocab_size != vocabulary:
        raise ConfigError(
            f"the model has {model.config.vocab_size} tokens and {base} has {vocabulary}; a KL "
            "needs one vocabulary."
        )
