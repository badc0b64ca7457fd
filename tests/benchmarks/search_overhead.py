"""What a trial of a search costs besides its evaluation: 51 choices (`vitas_deit`), 2,000 trials, on each storage.

python tests/benchmarks/search_overhead.py [--trials 2000]
"""

import argparse
import tempfile
import time
from pathlib import Path

import vitas


def main() -> None:
    """Print wall and CPU milliseconds a trial, with the set-up taken off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    model = vitas.create_superformer("vitas_deit")
    space = vitas.search_space(model)
    marks: list[tuple[float, float]] = []

    def evaluate(_):
        marks.append((time.perf_counter(), time.process_time()))
        return float(space.choices["embed_dim"].active)

    with tempfile.TemporaryDirectory() as folder:
        places = {"memory": None, "journal file": Path(folder) / "search.log", "SQLite": f"sqlite:///{folder}/search.db"}
        for name, storage in places.items():
            marks.clear()
            trials = options.trials if name != "SQLite" else min(options.trials, 300)
            settings = {"flops": (0.9e9, 1e9), "population": 50, "generations": trials // 50}
            vitas.evolve(model, evaluate, storage=storage, progress=False, **settings)
            (wall, cpu), (last_wall, last_cpu) = marks[0], marks[-1]
            n = len(marks) - 1
            print(
                f"{name:<13} {1e3 * (last_wall - wall) / n:6.2f} ms, CPU {1e3 * (last_cpu - cpu) / n:6.2f} ms  ({n} trials)",
                flush=True,
            )


if __name__ == "__main__":
    main()
