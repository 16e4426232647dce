"""Faults, counted: small runs, one thing done to each, and whether what is promised held. See `__main__.py`."""
