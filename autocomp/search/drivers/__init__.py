"""Drivers by name: who measures the trials of a search, and where."""

DRIVERS = {
    "inline": "autocomp.search.drivers.inline:InlineDriver",
    "ray": "autocomp.search.drivers.ray:RayTuneDriver",
}
