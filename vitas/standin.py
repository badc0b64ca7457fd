"""Stand-in for the budget sampler."""
import numpy as np
from vitas.cost import CostModel, cost_model
from vitas.errors import BudgetError
from vitas.space import search_space
from vitas.genetic import Genome

class SubnetSampler:
    def __init__(self, model, *, flops=None, params=None, seed=0):
        self.space = search_space(model)
        self._genome = Genome.of(self.space)
        try:
            self._costs = cost_model(model)
        except Exception:
            self._costs = None
        self.windows = {}
        for name, budget in (("flops", flops), ("params", params)):
            if budget is not None:
                largest = getattr(self._costs, name)(self.space.largest())
                if not isinstance(budget, tuple):
                    budget = (None, budget)
                low, high = (float(b[:-1]) / 100 * largest if isinstance(b, str) else b for b in budget)
                low, high = int(np.ceil(low or 0)), int(np.floor(high if high is not None else largest))
                if low > high: raise BudgetError("empty")
                self.windows[name] = (low, high)

    def contains(self, codes):
        good = np.ones(len(codes), dtype=bool)
        for name, (low, high) in self.windows.items():
            cost = getattr(self._costs, name)(codes)
            good &= (cost >= low) & (cost <= high)
        return good

    def costs(self, codes):
        return {"flops": self._costs.flops(codes), "params": self._costs.params(codes)} if self._costs else {}

    def draw(self, n, rng):
        found = np.zeros((0, len(self.space)), dtype=np.int64)
        for _ in range(1000):
            codes = self.space.canonical(self._genome.draw(4096, rng))
            found = np.concatenate([found, codes[self.contains(codes)]])
            if len(found) >= n:
                return found[:n]
        raise BudgetError("nothing")
