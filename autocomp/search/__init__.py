"""The search: proposals, the study that records them, and the finish of the best."""
