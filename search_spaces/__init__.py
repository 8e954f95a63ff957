"""Search spaces: which options a site may take; one file a space, one line in ``SPACES``."""

if __name__ != "autocomp.search_spaces":
    raise ImportError("this folder is the package autocomp.search_spaces; import it by that name")

SPACES = {
    "joint": "autocomp.search_spaces.joint:JOINT",
    "full": "autocomp.search_spaces.full:FULL",
    "bits": "autocomp.search_spaces.bits:BITS",
    "sparsity": "autocomp.search_spaces.sparsity:SPARSITY",
    "rank": "autocomp.search_spaces.rank:RANK",
}
