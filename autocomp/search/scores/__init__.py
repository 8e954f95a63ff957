"""Scores by name: what ``search.score`` may be."""

SCORES = {
    "kronecker": "autocomp.search.scores.kronecker:Kronecker",
    "kronecker-sinks": "autocomp.search.scores.kronecker_sinks:KroneckerSinks",
    "token": "autocomp.search.scores.token:Token",
    "token-no-sinks": "autocomp.search.scores.token_no_sinks:TokenNoSinks",
    "output-error": "autocomp.search.scores.output_error:OutputError",
    "weight-error": "autocomp.search.scores.weight_error:WeightError",
    "gradient": "autocomp.search.scores.gradient:Gradient",
    "autoquantize": "autocomp.search.scores.autoquantize:AutoQuantize",
    "measured": "autocomp.search.scores.measured:Measured",
}
