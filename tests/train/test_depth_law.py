import numpy as np
import pytest

from vitas import BudgetError, ChoiceError, SubnetSampler, create_superformer, narrow
from vitas.cost import stated_cost
from vitas.nn.depth import binomial_law
from vitas.train.depth_law import depth_law_for

G = 10**9

pytestmark = pytest.mark.filterwarnings("ignore:depth law")


def mean_of_deit(identity):
    """The mean count of vitas_deit, from its formula: every width, patch and depth averaged over on its own."""
    widths = np.array([38, 77, 115, 154, 192, 230, 269, 307, 346, 384], dtype=float)
    ratio = 5.5  # mean of 1..10
    m = np.arange(1, 17)
    law = np.array(binomial_law(16, identity))
    depth = (law * m).sum() / law.sum()
    total = 0.0
    for patch in (14, 16, 32):
        tokens = (224 // patch) ** 2
        n = tokens + 1
        fixed = 3 * widths * tokens * patch**2 + 1000 * widths
        block = 48 * ratio * (4 * n * widths + 2 * n * n) + 144 * ratio * 2 * n * widths
        total += (fixed + depth * block).mean() / 3
    return total


def test_the_mean_meets_the_target_on_the_full_size_space():
    model = create_superformer("vitas_deit")
    for target in (0.8 * G, 0.95 * G, G, 1.3 * G):
        assert mean_of_deit(depth_law_for(model, flops=target)) == pytest.approx(target, rel=1e-9)
    assert depth_law_for(model, flops=G) == pytest.approx(0.4786, abs=0.02)  # published count, patches uniform: 0.4786


def test_drawn_subnets_have_that_mean():
    options = {"img_size": 8, "num_classes": 3}
    model = create_superformer("deit_micro", **options)
    slots = len(model.blocks)
    p = depth_law_for(model, flops="15%")
    model = create_superformer("deit_micro", depth_p=binomial_law(slots, p), **options)
    sampler = SubnetSampler(model)
    costs = sampler.costs(sampler.draw(20_000, np.random.default_rng(0)))["flops"]
    target = SubnetSampler(model, flops="15%").windows["flops"].high
    assert abs(costs.mean() - target) < 4 * costs.std() / len(costs) ** 0.5
    q = depth_law_for(model, params="25%")
    assert 0 < q < 1


def mean_of(model):
    mean = 0.0
    for bases, table in stated_cost(model).merged().items():
        for base in reversed(bases):
            table = table @ np.array(base.p)
        mean += float(table)
    return mean


@pytest.mark.parametrize("depth", [range(1, 7), range(2, 7, 2), range(3, 13, 3), range(4, 9, 4)])
def test_a_model_built_with_the_probability_has_that_mean(depth):
    options = {"img_size": 8, "num_classes": 3, "depth": depth}
    p = depth_law_for(create_superformer("deit_micro", **options), flops="20%")
    model = create_superformer("deit_micro", depth_p=p, **options)
    assert mean_of(model) == pytest.approx(SubnetSampler(model, flops="20%").windows["flops"].high)


def test_a_depth_that_was_narrowed_has_that_mean():
    options, left = {"img_size": 8, "num_classes": 3, "depth": range(1, 7)}, {"depth": [2, 4, 6]}
    p = depth_law_for(narrow(create_superformer("deit_micro", **options), only=left), flops="20%")
    model = narrow(create_superformer("deit_micro", depth_p=p, **options), only=left)
    assert mean_of(model) == pytest.approx(SubnetSampler(model, flops="20%").windows["flops"].high)


def test_bad_targets_are_refused():
    model = create_superformer("deit_micro", img_size=8, num_classes=3)
    with pytest.raises(BudgetError, match="cannot be reached; means go from"):
        depth_law_for(model, flops="100%")
    with pytest.raises(BudgetError, match="give one target"):
        depth_law_for(model)
    with pytest.raises(BudgetError, match="one number"):
        depth_law_for(model, flops=(1, 2))
    with pytest.raises(ChoiceError, match="no depth to be searched"):
        depth_law_for(create_superformer("deit_micro", img_size=8, num_classes=3, depth=2), flops=10**6)
