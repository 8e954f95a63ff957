"""Attention of one new token to a cache of few bits, whose latest tokens are in full precision.

The layout is that of KIVI: keys share a scale over consecutive tokens of a channel, values over
consecutive channels of a token, and codes are packed in that direction.

Reference: Liu et al. 2024, KIVI, https://arxiv.org/abs/2402.02750
"""

from typing import NamedTuple

import torch
from torch import Tensor

from autocomp.kernels._decode import block_codes, whole_bytes
from autocomp.kernels._op import operation
from autocomp.kernels._tile import LEAST_ROWS
from autocomp.kernels._triton import (
    jit,
    launch,
    options_of,
    power_of_two,
    tl,
    triton_backend,
)
from autocomp.kernels.bits import unpack_bits


class Stored(NamedTuple):
    """Keys or values ``code · scale + low``, packed along the last dimension, n long.

    Keys are (batch, kv heads, width, tokens), values (batch, kv heads, tokens, width).

    Args:
        codes: (…, ceil(n·bits/8)) uint8.
        scale: (…, groups) fp16; a group is ``n / groups`` consecutive entries.
        low: (…, groups) fp16.
        bits: Bits a code: 1 to 8.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int

    def dense(self, count: int) -> Tensor:
        """Return (…, count) fp32."""
        codes = unpack_bits(self.codes.flatten(0, -2), self.bits, count)
        grouped = codes.view(*self.scale.shape, -1).to(torch.float32)
        found = grouped * self.scale[..., None].float() + self.low[..., None].float()
        return found.flatten(-2)


@operation
def kv_attention(
    query: Tensor,
    keys: Stored | None,
    values: Stored | None,
    latest_keys: Tensor,
    latest_values: Tensor,
) -> Tensor:
    """Attend from one token: ``softmax(q Kᵀ / √width) V``.

    Fewer keys than values, or the other way round, may be stored in few bits; with the latest they
    number the same. Consecutive heads share keys and values, ``heads / kv heads`` each.

    Args:
        query: (batch, heads, width) of a floating dtype.
        keys: The first keys; ``None`` is none.
        values: The first values; ``None`` is none.
        latest_keys: (batch, kv heads, tokens, width) of a floating dtype, those that follow.
        latest_values: (batch, kv heads, tokens, width), likewise.

    Returns:
        (batch, heads, width) in the dtype of the query.
    """
    width = query.shape[2]
    stored, _, _ = _tokens(keys, values, latest_keys, latest_values)
    all_keys, all_values = latest_keys.float(), latest_values.float()
    if keys is not None:
        first = keys.dense(stored).transpose(2, 3)
        all_keys = torch.cat([first, all_keys], dim=2)
    if values is not None:
        all_values = torch.cat([values.dense(width), all_values], dim=2)
    grouped = query.float().view(len(query), latest_keys.shape[1], -1, width)
    scores = grouped @ all_keys.transpose(2, 3) * width**-0.5
    return (scores.softmax(dim=3) @ all_values).view(query.shape).to(query.dtype)


@kv_attention.operator
def _shape(
    query: Tensor,
    keys: Stored | None,
    values: Stored | None,
    latest_keys: Tensor,
    latest_values: Tensor,
) -> Tensor:
    return torch.empty_like(query)


def _tokens(
    keys: Stored | None, values: Stored | None, latest_keys: Tensor, latest_values: Tensor
) -> tuple[int, int, int]:
    """Return how many keys and values are stored in few bits, and how many keys are not.

    Values tell how many tokens there are: bits pad keys to whole bytes.
    """
    stored = 0 if values is None else values.codes.shape[2]
    tokens = stored + latest_values.shape[2]
    return tokens - latest_keys.shape[2], stored, latest_keys.shape[2]


@jit
def _kernel(  # noqa: PLR0913
    query: tl.tensor,
    key_codes: tl.tensor,
    key_scale: tl.tensor,
    key_low: tl.tensor,
    value_codes: tl.tensor,
    value_scale: tl.tensor,
    value_low: tl.tensor,
    latest_keys: tl.tensor,
    latest_values: tl.tensor,
    outputs: tl.tensor,
    sizes: tl.tensor,
    tokens: int,
    stored_keys: int,
    stored_values: int,
    heads: int,
    width: int,
    key_groups: int,
    value_groups: int,
    key_bytes: int,
    value_bytes: int,
    factor: float,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    VALUE_BYTES: tl.constexpr,
    KEY_WHOLE: tl.constexpr,
    VALUE_WHOLE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """A share of the tokens for all heads that read the same keys; a running softmax in fp32."""
    own = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    head = tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_W)
    there, used = channel < width, head < heads
    lines = (own * heads + head)[:, None] * width + channel[None, :]
    wanted = used[:, None] & there[None, :]
    vector = tl.load(query + lines, mask=wanted, other=0.0)
    dtype = vector.dtype
    peak = tl.full((BLOCK_Q,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_Q, BLOCK_W), dtype=tl.float32)
    blocks = tl.cdiv(tokens, BLOCK_T)
    part = tl.cdiv(blocks, SPLIT)
    for block in range(part * split, tl.minimum(part * (split + 1), blocks)):
        first = block * BLOCK_T
        token = first + tl.arange(0, BLOCK_T)
        key = tl.zeros((BLOCK_W, BLOCK_T), dtype=tl.float32)
        row = (own * width + channel)[:, None]
        if KEY_BITS > 0:  # noqa: SIM102 (the outer one is decided at compile time)
            if first < stored_keys:
                code = block_codes(
                    key_codes + row * key_bytes,
                    first,
                    stored_keys,
                    there,
                    KEY_BITS,
                    KEY_BYTES,
                    KEY_WHOLE,
                    BLOCK_T,
                )
                if KEY_WHOLE:  # the block lies in one group
                    keep = there[:, None]
                    group = row * key_groups + first // (stored_keys // key_groups)
                else:
                    keep = there[:, None] & (token < stored_keys)[None, :]
                    group = row * key_groups + (token // (stored_keys // key_groups))[None, :]
                step = tl.load(key_scale + group, mask=keep, other=0.0).to(tl.float32)
                low = tl.load(key_low + group, mask=keep, other=0.0).to(tl.float32)
                key = code.to(tl.float32) * step + low
        if first + BLOCK_T > stored_keys:
            keep = there[:, None] & ((token >= stored_keys) & (token < tokens))[None, :]
            line = own * (tokens - stored_keys) + token - stored_keys
            places = latest_keys + line[None, :] * width + channel[:, None]
            key += tl.load(places, mask=keep, other=0.0).to(tl.float32)
        score = tl.dot(vector, key.to(dtype), input_precision="ieee") * factor
        score = tl.where((token < tokens)[None, :], score, -1e30)
        highest = tl.maximum(peak, tl.max(score, axis=1))
        shrink = tl.exp(peak - highest)
        share = tl.exp(score - highest[:, None])
        value = tl.zeros((BLOCK_T, BLOCK_W), dtype=tl.float32)
        if VALUE_BITS > 0:  # noqa: SIM102
            if first < stored_values:
                keep = (token < stored_values)[:, None] & there[None, :]
                line = (own * stored_values + token)[:, None]
                code = block_codes(
                    value_codes + line * value_bytes,
                    0,
                    width,
                    token < stored_values,
                    VALUE_BITS,
                    VALUE_BYTES,
                    VALUE_WHOLE,
                    BLOCK_W,
                )
                group = line * value_groups + (channel // (width // value_groups))[None, :]
                step = tl.load(value_scale + group, mask=keep, other=0.0).to(tl.float32)
                low = tl.load(value_low + group, mask=keep, other=0.0).to(tl.float32)
                value = code.to(tl.float32) * step + low
        if first + BLOCK_T > stored_values:
            keep = ((token >= stored_values) & (token < tokens))[:, None] & there[None, :]
            line = own * (tokens - stored_values) + token - stored_values
            places = latest_values + line[:, None] * width + channel[None, :]
            value += tl.load(places, mask=keep, other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(share, axis=1)
        sums = sums * shrink[:, None]
        sums += tl.dot(share.to(dtype), value.to(dtype), input_precision="ieee")
        peak = highest
    found = sums / tl.maximum(total, 1e-30)[:, None]
    lines += split * tl.num_programs(0) * heads * width
    tl.store(outputs + lines, found.to(outputs.dtype.element_ty), mask=wanted)
    if SPLIT > 1:
        places = sizes + (split * tl.num_programs(0) + own) * heads + head
        tl.store(places, peak + tl.log(tl.maximum(total, 1e-30)), mask=used)


def _not_contiguous(
    query: Tensor,
    keys: Stored | None,
    values: Stored | None,
    latest_keys: Tensor,
    latest_values: Tensor,
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    tensors = [query, latest_keys, latest_values]
    tensors += [each for stored in (keys, values) if stored is not None for each in stored[:3]]
    if not all(tensor.is_contiguous() for tensor in tensors):
        return "takes contiguous tensors"
    return None if query.numel() else "takes at least one head"


@triton_backend(kv_attention, rule="contiguous tensors", check=_not_contiguous)
def _triton(
    query: Tensor,
    keys: Stored | None,
    values: Stored | None,
    latest_keys: Tensor,
    latest_values: Tensor,
) -> Tensor:
    """Decode on the way, each cached byte once."""
    (batch, heads, width), shared = query.shape, latest_keys.shape[1]
    stored_keys, stored_values, rest = _tokens(keys, values, latest_keys, latest_values)
    tokens = stored_keys + rest
    options = options_of("kv_attention", query.device, tokens=tokens)
    split = options["SPLIT"]
    outputs = query.new_empty(
        (split, batch, heads, width), dtype=query.dtype if split == 1 else torch.float32
    )
    sizes = outputs.new_empty((split, batch, heads), dtype=torch.float32)
    none = (None, None, None, 0)
    *key_parts, key_bits = keys or none
    *value_parts, value_bits = values or none
    key_groups, value_groups = (
        1 if each is None else each.scale.shape[3] for each in (keys, values)
    )
    block, wide = options["BLOCK_T"], max(LEAST_ROWS, power_of_two(width))
    whole_keys = stored_keys % block == 0 and stored_keys // key_groups % block == 0
    launch(
        _kernel,
        (batch * shared, split),
        *(query, *key_parts, *value_parts, latest_keys, latest_values, outputs, sizes),
        *(tokens, stored_keys, stored_values, heads // shared, width, key_groups, value_groups),
        *(0 if each is None else each.codes.shape[3] for each in (keys, values)),
        width**-0.5,
        **{"KEY_BITS": key_bits, "VALUE_BITS": value_bits},
        **{"KEY_BYTES": whole_bytes(block, key_bits) and stored_keys * key_bits % 8 == 0},
        **{"VALUE_BYTES": whole_bytes(width, value_bits)},
        **{"KEY_WHOLE": whole_keys, "VALUE_WHOLE": wide == width},
        **{"BLOCK_Q": max(LEAST_ROWS, power_of_two(heads // shared)), "BLOCK_W": wide},
        **options,
    )
    if split == 1:
        return outputs[0]
    return (outputs * sizes.softmax(dim=0)[..., None]).sum(dim=0).to(query.dtype)
