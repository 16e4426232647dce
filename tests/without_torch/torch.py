"""Comes before torch for the processes of tests that are not marked `workers`."""

raise ImportError("a test that starts a process which imports torch needs @pytest.mark.workers, see tests/marks.py")
