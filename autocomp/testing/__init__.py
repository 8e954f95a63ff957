"""Contract suites: what every registered method, format, space and kernel must fulfil."""
