"""Sparsity only: kept weights stay in the model's own dtype."""

from autocomp.search_spaces._space import Space

SPARSITY = Space(
    name="sparsity",
    summary="a share of zero weights a layer, unstructured or N:M, without quantization",
    linear=(
        "sparsegpt-s20",
        "sparsegpt-s30",
        "sparsegpt-s40",
        "sparsegpt-s50",
        "sparsegpt-s60",
        "sparsegpt-s70",
        "sparsegpt-1:4",
        "sparsegpt-2:4",
        "sparsegpt-4:8",
        "wanda-s50",
        "wanda-2:4",
        "wanda-s60+dsnot",
        "wanda-2:4+dsnot",
        "shuffle+esparse-2:4",
        "dense",
    ),
    embedding=("dense",),
    bypass=False,
)
