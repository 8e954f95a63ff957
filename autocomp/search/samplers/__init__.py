"""Samplers by name: what ``search.sampler`` may be."""

SAMPLERS = {
    "auto": "autocomp.search.samplers.auto:propose",
}
