"""Written while a run runs: metrics.csv, summary.json, the progress line, the result table, other loggers."""
