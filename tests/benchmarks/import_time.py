"""What `import vitas` adds to `import torch`.

    python tests/benchmarks/import_time.py [--runs 9]

CPU times, each of a new process, the ways interleaved. A collection of garbage goes through all that torch has made, and
whether one falls into the import of vitas is a matter of torch's version, so it is measured without too; and as it is
where Python may not keep the byte code (PYTHONDONTWRITEBYTECODE) and compiles every file anew.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

PROGRAM = """
import gc, time
started = time.process_time()
import torch
of_torch = time.process_time() - started
{before}
started = time.process_time()
import vitas
print(time.process_time() - started, of_torch)
"""


def measured(before: str, **environment: str) -> tuple[float, float]:
    """Return the seconds that a new process takes to import vitas after torch, and torch itself."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(command, env={**inherited, **environment}, check=True, capture_output=True, text=True)
    of_vitas, of_torch = map(float, done.stdout.split())
    return of_vitas, of_torch


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    measured("")  # writes the byte code
    with tempfile.TemporaryDirectory() as empty:
        ways = {
            "as it is": lambda: measured(""),
            "without garbage collection": lambda: measured("gc.disable()"),
            "every file compiled": lambda: measured("", PYTHONPYCACHEPREFIX=empty, PYTHONDONTWRITEBYTECODE="1"),
        }
        rounds = [{way: measure() for way, measure in ways.items()} for _ in range(runs)]
    for way in ways:
        of_vitas, of_torch = (statistics.median(column) for column in zip(*(times[way] for times in rounds), strict=True))
        print(f"{way}: vitas {of_vitas:.3f} s, torch {of_torch:.2f} s")


if __name__ == "__main__":
    main()
