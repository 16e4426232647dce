"""`make golden`: compare with losses.json; `--write` writes it. Exit code 1 if a number changed."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch  # noqa: F401  # before the cases are forked
import torch
from rich.progress import track

from tests.golden import FILE, TOLERANCE, cases, difference, machine, measure, read


def main() -> int:
    parser = argparse.ArgumentParser("golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write losses.json anew")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ticks-golden-") as directory:
        os.environ["TICKS_CACHE"] = f"{directory}/cache"
        now = {name: measure(name, Path(tempfile.mkdtemp(dir=directory))) for name in track(cases(), "golden")}
    if chosen.write:
        FILE.write_text(json.dumps({"machine": machine(), "cases": now}, indent=1) + "\n")
        return 0
    then, exactly = read()["cases"], read()["machine"] == machine()
    changed = [
        line for name in now if name in then and (line := difference(name, now[name], then[name], exactly=exactly))
    ]
    changed += [f"{name}: not written down yet" for name in now.keys() - then.keys()]
    changed += [f"{name}: not there any more" for name in then.keys() - now.keys()]
    same = "the same" if exactly else f"within {TOLERANCE:.1%} of those written down on another machine"
    print("\n".join(changed) or f"{len(now)} cases, every number {same}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
