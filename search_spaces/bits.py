"""Bit-widths only."""

from autocomp.search_spaces._space import EMBEDDING, Space

BITS = Space(
    name="bits",
    summary="a bit-width and a group size a layer",
    linear=(
        "gptq-w2g64",
        "gptq-w2g32",
        "gptq-w3g64",
        "gptq-w3g32",
        "gptq-w4g64",
        "gptq-w4g32",
        "gptq-w5g64",
        "gptq-w6g64",
        "gptq-w8g64",
        "dense",
    ),
    embedding=EMBEDDING,
    bypass=False,
)
