"""Every figure that has a bar, in one table: ``python -m benchmarks``.

Runs the benchmarks one after the other, each in a process of its own, shows what they
print, and ends with what is compared, the bar and whether it is met. Half an hour on two
cores, and another hour and a half for MLlib; ``--only passes small`` runs some. A peer
that is installed apart is used when its program is named:
``--xlearn path/to/xlearn_train``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import RESULTS, header, row

COMMANDS: dict[str, list[str]] = {
    "kernel": [],
    "passes": ["--rows", "8000000"],
    "small": [],
    "cores": [],
    "recordio": [],
    "files": [],
    "grid": [],
    "mllib": ["--decays", "0"],
}


def main() -> None:
    """Run the benchmarks and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--xlearn", help="path of the program xlearn_train")
    args = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        for name in args.only:
            words = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *COMMANDS[name]]
            if name in ("kernel", "files") and args.xlearn:
                words += ["--xlearn", args.xlearn]
            print(f"\n## {' '.join(words[3:])}\n", flush=True)
            started = time.perf_counter()
            done = subprocess.run(words, env={**os.environ, RESULTS: str(results)}, check=False)
            print(f"\n{time.perf_counter() - started:.0f} s", flush=True)
            if done.returncode:
                failed.append(name)
        found = [json.loads(line) for line in results.read_text().splitlines()]
    print()
    header("what", "figure", "bar", "moonshot", "met")
    for facts in found:
        met = "yes" if facts["met"] else "NO"
        row(facts["what"], facts["figure"], facts["bar"], facts["moonshot"], met)
    if failed:
        raise SystemExit(f"did not run to the end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
