"""Allocations by name: what ``search.allocations`` may hold."""

ALLOCATIONS = {
    "owl": "autocomp.search.allocations.owl:Owl",
    "samsp": "autocomp.search.allocations.samsp:Samsp",
    "asvd": "autocomp.search.allocations.asvd:Asvd",
}
