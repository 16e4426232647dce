"""Read afterwards: runs side by side, as a table and as a figure."""
