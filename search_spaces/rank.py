"""Rank only: whitened low-rank factors in the model's own dtype."""

from autocomp.search_spaces._space import Space

RANK = Space(
    name="rank",
    summary="a rank a layer, as the share of parameters kept, without quantization",
    linear=(
        "wsvd-p20",
        "wsvd-p30",
        "wsvd-p40",
        "wsvd-p50",
        "wsvd-p60",
        "wsvd-p70",
        "wsvd-p80",
        "asvd-p50",
        "asvd-p80",
        "dense",
    ),
    embedding=("dense",),
    bypass=False,
)
