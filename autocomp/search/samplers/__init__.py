"""Samplers by name: what ``search.sampler`` may be."""

SAMPLERS = {
    "auto": "autocomp.search.samplers.auto:propose",
    "evopress": "autocomp.search.samplers.evopress:propose",
    "random": "autocomp.search.samplers.baselines:RANDOM",
    "tpe": "autocomp.search.samplers.baselines:TPE",
    "nsgaii": "autocomp.search.samplers.baselines:NSGAII",
    "nsgaiii": "autocomp.search.samplers.baselines:NSGAIII",
    "gp": "autocomp.search.samplers.baselines:GP",
}
