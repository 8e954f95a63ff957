"""Bench of attention to a cache of few bits: heads of Llama-3-8B, 4,096 and 32,768 tokens."""

from collections.abc import Iterator

import torch
from _case import Case, codes, nbytes, values

from autocomp.kernels._triton import Launch
from autocomp.kernels.kv_attention import Stored

HEADS, SHARED, WIDTH, LATEST, GROUP = 32, 8, 128, 128, 32


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over batches, tokens and bits."""
    for tokens in (4096,) if quick else (4096, 32768):
        for batch in (1,) if quick else (1, 8):
            for bits in (2, 4, 8):
                shape = (batch, SHARED)
                keys = Stored(
                    codes((*shape, WIDTH, tokens), bits, device),
                    values(*shape, WIDTH, tokens // GROUP, device=device),
                    values(*shape, WIDTH, tokens // GROUP, device=device),
                    bits,
                )
                held = Stored(
                    codes((*shape, tokens, WIDTH), bits, device),
                    values(*shape, tokens, WIDTH // GROUP, device=device),
                    values(*shape, tokens, WIDTH // GROUP, device=device),
                    bits,
                )
                query = values(batch, HEADS, WIDTH, device=device, dtype=dtype)
                latest = values(*shape, LATEST, WIDTH, device=device, dtype=dtype)
                yield Case(
                    f"{tokens} tokens, batch {batch}, {bits} bits",
                    (query, keys, held, latest, latest),
                    nbytes(query, *keys[:3], *held[:3], latest, latest, query),
                    4 * batch * HEADS * (tokens + LATEST) * WIDTH,
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: shares of the tokens have sums of their own."""
    query, *cache, outputs, sizes = launch.arguments[:11]
    moved = sum(t.nbytes for t in cache if t is not None) + query.nbytes * launch.grid[1]
    return int(moved + 2 * (outputs.nbytes + sizes.nbytes))
