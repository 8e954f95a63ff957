"""A local model as the teacher of data recipes: it continues token ids with its KV cache."""

from functools import cached_property

import torch
from torch import Generator, Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from autocomp.models.arguments import cache_argument
from autocomp.models.device import bf16_products, body_dtype
from autocomp.models.loading import LoadedModel, load
from autocomp.models.sampling import invert_cumulative

CACHE_BYTES = 1e9


class ModelTeacher:
    """Writes text with a model; fulfils :class:`autocomp.core.method.Teacher`.

    The body runs in the dtype that the device multiplies, the logits are fp32, and draws invert
    the cumulative distribution at levels from a CPU generator, one a sequence and position.

    Args:
        base: The model that is to be compressed. A copy of its own is loaded at the first draw,
            so what becomes of ``base`` meanwhile does not matter.
        device: Where to run.
        length: Tokens a sequence.
        batch_size: Sequences a forward pass; ``None`` is as many as fit 1 GB of KV cache.
    """

    def __init__(
        self,
        base: LoadedModel,
        device: torch.device,
        length: int,
        batch_size: int | None = None,
    ) -> None:
        sketch = base.sketch
        self.length = length
        self.device = device
        self.dtype = body_dtype(device)
        self.digest = f"{base.digest}-{str(self.dtype).removeprefix('torch.')}-{device.type}"
        self.vocabulary = text_tokens(base.tokenizer, sketch.vocab_size)
        self._source = base.source
        cached = 2 * sketch.num_layers * sketch.num_kv_heads * sketch.head_dim * length
        fitting = int(CACHE_BYTES // (cached * self.dtype.itemsize))
        self._batch_size = batch_size or max(1, fitting)

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load(self._source, device=str(self.device), dtype=self.dtype).model

    @cached_property
    def _head(self) -> Tensor:
        """The head's rows of ``vocabulary``, (n, hidden) fp32."""
        weight: Tensor = self._model.get_output_embeddings().weight
        return weight.detach()[self.vocabulary.to(self.device)].float()

    def sample(self, starts: Tensor, greedy: Tensor, temperature: float, seed: int) -> Tensor:
        """Continue first tokens; see :meth:`autocomp.core.method.Teacher.sample`."""
        generator = Generator().manual_seed(seed)
        levels = torch.rand(len(starts), self.length, generator=generator)
        batches = zip(
            *(tensor.split(self._batch_size) for tensor in (starts, greedy, levels)), strict=True
        )
        return torch.cat([self._continue(*batch, temperature=temperature) for batch in batches])

    @torch.no_grad()
    def _continue(
        self, starts: Tensor, greedy: Tensor, levels: Tensor, *, temperature: float
    ) -> Tensor:
        """Continue one batch at levels (sequences, length)."""
        if len(starts) == 1:  # the product of a single row is summed in another order
            doubled = [tensor.repeat_interleave(2, 0) for tensor in (starts, greedy, levels)]
            return self._continue(*doubled, temperature=temperature)[:1]
        vocabulary = self.vocabulary.to(self.device)
        written = [starts.to(self.device)]
        body = self._model.base_model
        kept = {cache_argument(body): DynamicCache(config=self._model.config), "use_cache": True}
        for position in range(1, self.length):
            output = body(input_ids=written[-1][:, None], **kept)
            with bf16_products(self.dtype):
                logits = output.last_hidden_state[:, -1].float() @ self._head.T
            drawn = invert_cumulative(
                torch.softmax(logits / temperature, dim=-1), levels[:, position, None]
            )
            fixed = (position < greedy).to(self.device)
            written.append(vocabulary[torch.where(fixed, logits.argmax(dim=-1), drawn[:, 0])])
        return torch.stack(written, dim=1).cpu()


def text_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """Return the token ids that text consists of, (n,) int64 ascending.

    Left out are special tokens and the ids with which a model's vocabulary is padded.

    Args:
        tokenizer: The model's.
        vocab_size: Rows of the model's embedding.
    """
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = marked | set(tokenizer.all_special_ids)
    known = sorted(set(tokenizer.get_vocab().values()) - special)
    return torch.tensor([index for index in known if index < vocab_size])
