"""What a run leaves, and what people see of it: metrics.csv, summary.json, progress, tables, figures."""
