"""How good the search is: scores with a known optimum, against random draws and the NSGA-II of Optuna and of pymoo.

    python tests/benchmarks/search.py [--seeds 10] [--evaluations 2000] [--only random,vitas,pymoo,optuna]

The space is `vitas_deit` in [0.9, 1.0] G; the scores are those of tests/synthetic.py (no forward pass runs). The table
gives score / optimum. Seeds 0 to 9 and score 0 were not used for tuning. All start from the same population, drawn exactly;
pymoo has our repair too, Optuna rejects what lies outside the window and asks again.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import vitas
from vitas.search.genetic import Genome, repair

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.synthetic import Synthetic

WINDOW = (900_000_000, 1_000_000_000)


def by_vitas(task, seed, evaluations):
    """Evolution, asked and told one at a time."""
    evolution = vitas.Evolution(task.model, flops=WINDOW, seed=seed)
    for _ in range(evaluations):
        (subnet,) = evolution.ask()
        evolution.tell(subnet, float(task.score(task.space.encode(subnet)[None])[0]))
    scores = evolution.result().scores
    assert len(scores) == evaluations
    return max(score["accuracy"] for score in scores.values())


def by_random_draws(task, seed, evaluations):
    """Draws from the prior inside the window."""
    return task.score(task.sampler.draw(evaluations, np.random.default_rng([seed]))).max()


def by_pymoo(task, seed, evaluations):
    """pymoo's NSGA-II with two-point crossover, polynomial mutation and our repair."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.pm import PolynomialMutation
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    genome = Genome.of(task.space)
    rng = np.random.default_rng([seed, 1])

    class Task(Problem):
        def __init__(self):
            super().__init__(n_var=len(task.space), n_obj=1, xl=0, xu=genome.sizes - 1, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            codes = task.space.canonical(x.astype(np.int64))
            inside = task.sampler.contains(codes)
            task.seen = max(task.seen, task.score(codes[inside]).max(initial=-np.inf))
            out["F"] = np.where(inside, -task.score(codes), 1e9)[:, None]

    class Ours(Repair):
        def _do(self, problem, x, **kwargs):
            x = np.round(x).astype(np.int64)
            for row, fits in enumerate(inside(x)):
                if not fits:
                    mended = repair(x[row], task.space.liveness.of(x[row : row + 1])[0], genome, inside, rng)
                    x[row] = x[row] if mended is None else mended
            return x

    def inside(codes):
        return task.sampler.contains(task.space.canonical(codes))

    first = task.sampler.draw(50, np.random.default_rng([seed]))
    algorithm = NSGA2(
        pop_size=50,
        sampling=np.where(first < 0, genome.draw(50, rng), first),
        crossover=TwoPointCrossover(repair=RoundingRepair()),
        mutation=PolynomialMutation(prob=1.0, prob_var=1 / len(task.space), eta=3, vtype=float, repair=RoundingRepair()),
        repair=Ours(),
        eliminate_duplicates=True,
    )
    task.seen = -np.inf
    minimize(Task(), algorithm, ("n_eval", evaluations), seed=seed)
    return task.seen


def by_optuna(task, seed, evaluations):
    """Optuna's NSGA-II; what lies outside the window is told as failed and does not count as an evaluation."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.NSGAIISampler(population_size=50, seed=seed))
    for code in task.sampler.draw(50, np.random.default_rng([seed])):
        study.enqueue_trial(dict(task.space.decode(code)))
    best, done, asked = -np.inf, 0, 0
    while done < evaluations and asked < 10 * evaluations:
        trial, asked = study.ask(), asked + 1
        code = task.space.encode(vitas.suggest_subnet(trial, task.model))[None]
        if task.sampler.contains(code)[0]:
            value = float(task.score(code)[0])
            study.tell(trial, value)
            best, done = max(best, value), done + 1
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return best


class Task:
    """A score on the space, and the sampler that all start from."""

    def __init__(self, kind, number, model=None):
        self.model = vitas.create_superformer("vitas_deit") if model is None else model
        self.sampler = vitas.SubnetSampler(self.model, flops=WINDOW)
        self.space = self.sampler.space
        self.made_up = Synthetic(kind, number)
        self.optimum = self.made_up.optimum(*WINDOW)

    def score(self, codes):
        """Return the scores of encoded subnets, (n, choices) -> (n,)."""
        return self.made_up.of(self.space, codes)


SEARCHES = {"random": by_random_draws, "vitas": by_vitas, "pymoo": by_pymoo, "optuna": by_optuna}


def main() -> None:
    """Print a line for each search and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--only", default=",".join(SEARCHES))
    options = parser.parse_args()
    model = vitas.create_superformer("vitas_deit")
    tasks = {kind: Task(kind, 0, model) for kind in ("smooth", "rugged")}
    for name in options.only.split(","):
        for kind, task in tasks.items():
            start = time.process_time()
            found = [SEARCHES[name](task, seed, options.evaluations) / task.optimum for seed in range(options.seeds)]
            seconds = (time.process_time() - start) / options.seeds
            print(
                f"{kind}  {name:<7} median {statistics.median(found):.4f}  min {min(found):.4f}  max {max(found):.4f}"
                f"  within 1 %: {sum(value >= 0.99 for value in found)} of {len(found)}  ({seconds:.1f} s each)",
                flush=True,
            )


if __name__ == "__main__":
    main()
