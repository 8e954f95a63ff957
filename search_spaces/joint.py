"""Bits, sparsity, rank and dropped sub-blocks together: the default space."""

from autocomp.search_spaces._space import EMBEDDING, Space

JOINT = Space(
    name="joint",
    summary="bits, sparsity, rank and dropped sub-blocks together",
    linear=(
        "gptq-w2g64",
        "gptq-w3g64",
        "gptq-w3g32",
        "gptq-w4g64",
        "gptq-w4g32",
        "gptq-w5g64",
        "gptq-w6g64",
        "gptq-w8g64",
        "sparsegpt-2:4+gptq-w4g64",
        "sparsegpt-s50+gptq-w4g64",
        "sparsegpt-s50+gptq-w6g64",
        "wanda-2:4+rtn-w8g64",
        "wsvd-p40+rtn-w8g64",
        "wsvd-p60+rtn-w6g64",
        "dense",
    ),
    embedding=EMBEDDING,
    bypass=True,
    cache=("kivi-k2v2", "kivi-k4v4", "kivi-k8v8", "dense"),
)
