import itertools
import math
import statistics
import sys

import numpy as np
import pytest
import torch

from tests.superformer.test_deit import small
from vitas import ChoiceError, SubnetSampler, VitasError, accuracy, active_subnet, count_params, sample_subnet, search_space
from vitas.sharing import coverage
from vitas.train.report import kendall_tau, supernet_report
from vitas.train.sandwich import sandwich


def size_score(model):
    return count_params(model) / 10_000


def test_scores_the_ends_the_middle_and_random_ones_and_puts_back_what_was_active():
    model = small()
    space = search_space(model)
    before = sample_subnet(model)
    report = supernet_report(model, size_score, n_random=5, seed=3)
    assert active_subnet(model) == before
    generator = torch.Generator().manual_seed(3)
    assert report.random == tuple(count_params(model, space.sample(generator)) / 10_000 for _ in range(5))
    block = {"num_heads": 2, "qkv_dim": 6, "mlp_dim": 6}
    blocks = {f"blocks.{i}.{name}": value for i in range(2) for name, value in block.items()}
    middle = space.subnet({"embed_dim": 6, "depth": 2, "patch_size": 4, **blocks})
    expected = {"smallest": space.smallest(), "middle": middle, "largest": space.largest()}
    assert report.scores == {name: count_params(model, subnet) / 10_000 for name, subnet in expected.items()}
    assert "Larger subnets score higher" in report.verdict
    assert supernet_report(model, lambda model: {"accuracy": size_score(model)}).scores == report.scores


def test_bilateral_subnets_score_the_mean_of_both_sides():
    model = small(sharing="bilateral")
    report = supernet_report(model, lambda model: {"left": 1.0, "right": 4.0}[search_space(model).side])
    assert set(report.scores.values()) == {2.5}


@pytest.mark.parametrize("sharing", ["cyclic", "ordinal", "bilateral"])
def test_counted_updates_are_those_that_happened_and_near_those_expected(sharing):
    model = small(embed_dim=range(1, 11), sharing=sharing)
    sampler = SubnetSampler(model, seed=0)
    trained = [sampler.sample(step, activate=False) for step in range(1500)]
    report = supernet_report(model, size_score, trained=trained)
    width = search_space(model).choices["embed_dim"]
    counts = np.zeros(10)
    for subnet in trained:
        for run in width.sides:
            start, length = run[width.values.index(subnet["embed_dim"])]
            counts[(np.arange(length) + start) % 10] += 1 / len(width.sides)
    np.testing.assert_allclose(report.updates["embed_dim"], counts / 1500)
    live = [subnet["blocks.2.mlp_dim"] for subnet in trained if "blocks.2.mlp_dim" in subnet]
    assert 0 < len(live) < 700
    assert (report.passes["embed_dim"], report.passes["blocks.2.mlp_dim"]) == (1500, len(live))
    largest = live.count(8) / len(live)
    assert report.updates["blocks.2.mlp_dim"].min() >= largest - 1e-9

    expected = supernet_report(model, size_score)
    assert (report.counted, expected.counted) == (True, False)
    for name, use in expected.updates.items():
        np.testing.assert_allclose(report.updates[name], use, atol=0.12)
    np.testing.assert_allclose(expected.updates["embed_dim"] * 10, coverage(width).counts)
    assert expected.spread["embed_dim"] == pytest.approx(coverage(width).spread)
    assert report.spread["embed_dim"] == pytest.approx(np.ptp(counts) / 150)
    assert ("unevenly" in report.verdict) == (sharing == "ordinal")
    assert report.untouched == ()


def test_head_counts_have_channels_only_where_widths_follow_them():
    def dims(**options):
        return {name.split(".")[-1] for name in supernet_report(small(depth=2, **options), size_score).updates}

    assert dims() == {"embed_dim", "qkv_dim", "mlp_dim"}
    assert dims(qkv_dim=None, head_dim=4, private=None) == {"embed_dim", "num_heads", "mlp_dim"}


def test_values_that_no_step_used_are_named():
    model = small()
    trained = itertools.chain.from_iterable(sandwich(model, 0, step=step) for step in range(3))
    report = supernet_report(model, size_score, trained=trained)
    assert "embed_dim=6" in report.untouched
    assert "embed_dim=8" not in report.untouched
    assert "Never used in training: embed_dim=6" in report.verdict


def tau_by_pairs(a, b):
    """Kendall's tau-b over all pairs, as its definition counts them."""
    concordant = discordant = only_a = only_b = 0
    for (x, y), (u, v) in itertools.combinations(zip(a, b, strict=True), 2):
        s, t = np.sign(x - u), np.sign(y - v)
        concordant += s * t > 0
        discordant += s * t < 0
        only_a += s == 0 and t != 0
        only_b += s != 0 and t == 0
    free = math.sqrt((concordant + discordant + only_a) * (concordant + discordant + only_b))
    return (concordant - discordant) / free


def test_kendalls_tau():
    assert kendall_tau([1, 2, 3], [2, 4, 9]) == 1
    assert kendall_tau([1, 2, 3], [9, 4, 2]) == -1
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ChoiceError, match="scores: expected as many in both lists, got 2 and 3"):
        kendall_tau([1, 2], [1, 2, 3])
    low, other = -math.inf, [3, 4, 5, 1, 2]
    assert kendall_tau([1, 2, 3, low, low], other) == pytest.approx(tau_by_pairs([1, 2, 3, 0, 0], other))
    with pytest.raises(ChoiceError, match="scores: expected two lists of numbers, got None"):
        kendall_tau(None, [1, 2])
    with pytest.raises(ChoiceError, match="score: expected a number, got 'high'"):
        kendall_tau([1, 2], [1, "high"])
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.integers(0, 6, (2, 12))
        assert kendall_tau(a, b) == pytest.approx(tau_by_pairs(a, b))


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (lambda n: n / 100, "rank networks well"),
        (lambda n: -n / 100, "do not rank networks better than chance"),
        (lambda n: 0.5, "are all equal: they cannot be ranked"),
    ],
)
def test_rank_agreement_with_retrained_networks(score, verdict):
    model = small()
    subnets = dict.fromkeys(search_space(model).sample(torch.Generator().manual_seed(i)) for i in range(12))
    retrained = {subnet: score(count_params(model, subnet)) for subnet in subnets}
    report = supernet_report(model, size_score, retrained=retrained)
    assert report.retrained == tuple((count_params(model, s) / 10_000, value) for s, value in retrained.items())
    assert verdict in report.verdict
    assert "not known" in supernet_report(model, size_score).verdict


def linear_scores(low, high, n=12):
    """A score for each call: three for the ends and the middle, then n evenly from low to high."""
    return iter([0.1, 0.5, 0.9, *np.linspace(low, high, n)])


@pytest.mark.parametrize(
    ("low", "high", "images", "verdict"),
    [
        (0.78, 0.82, 5000, "1.3 points, of 5000 images alone 0.57: scores tell networks apart"),
        (0.78, 0.82, 500, "1.3 points, of 500 images alone 1.8: scores hardly tell networks apart."),
    ],
)
def test_the_verdict_compares_the_spread_of_scores_with_what_the_number_of_images_explains(low, high, images, verdict):
    scores = linear_scores(low, high)
    report = supernet_report(small(), lambda model: next(scores), n_random=12, images=images)
    spread = statistics.stdev(np.linspace(low, high, 12))
    binomial = math.sqrt(statistics.fmean(p * (1 - p) for p in np.linspace(low, high, 12)) / images)
    assert report.noise == pytest.approx(binomial)
    assert f"{100 * spread:.2g} points" in verdict
    assert f"Standard deviation of 12 subnets {verdict}" in report.verdict


def test_the_spread_is_judged_only_where_images_and_scores_say_something():
    def verdict(low=0.2, high=0.8, n=12, **options):
        scores = linear_scores(low, high, n)
        return supernet_report(small(), lambda model: next(scores), n_random=n, **options).verdict

    assert "apart" not in verdict()  # how many images is not known
    assert "apart" not in verdict(n=7, images=100)  # too few networks
    assert "apart" not in verdict(high=1.5, images=100)  # no accuracies
    assert "apart" in verdict(images=100)
    with pytest.raises(ChoiceError, match="retrained: expected a mapping from subnets to scores"):
        supernet_report(small(), size_score, retrained=[0.5])
    with pytest.raises(ChoiceError, match="images: expected a positive int, got 0"):
        verdict(images=0)


def test_the_number_of_images_is_taken_from_vitas_accuracy():
    model = small()
    images = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    evaluate = accuracy([(images[:30], torch.zeros(30, dtype=torch.long)), (images[30:], torch.ones(10, dtype=torch.long))])
    assert supernet_report(model, evaluate, n_random=8).images == evaluate.images == 40
    assert supernet_report(model, evaluate, n_random=8, images=9).images == 9


def test_the_verdict_notices_training_that_went_wrong():
    model = small()
    assert "training has diverged" in supernet_report(model, lambda model: float("nan")).verdict
    assert "A smaller subnet scores above the largest" in supernet_report(model, lambda m: 1 / size_score(m)).verdict
    assert "score about the same" in supernet_report(model, lambda model: 0.5).verdict


def test_prints_as_a_table():
    report = supernet_report(small(), size_score, n_random=3)
    text = repr(report)
    assert text.splitlines()[0].split() == ["smallest", f"{report.scores['smallest']:.4g}"]
    assert "3 random" in text
    use = report.updates["blocks.0.mlp_dim"]
    assert f"expected updates blocks.*.mlp_dim  {use.min():.1%} to {use.max():.1%} of steps, spread 1\n" in text
    assert text.endswith(report.verdict)
    assert "<table>" in report._repr_html_()


@pytest.mark.extras
def test_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    model = small()
    space = search_space(model)
    retrained = {space.smallest(): 0.1, space.largest(): 0.9}
    for options, panels in (({}, 2), ({"retrained": retrained, "n_random": 4}, 3)):
        figure = supernet_report(model, size_score, **options).plot()
        assert len(figure.axes) == panels
        figure.savefig(tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 10_000


def test_without_matplotlib_a_picture_says_what_to_install(monkeypatch):
    report = supernet_report(small(), size_score, n_random=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(VitasError, match=r'pip install "vitas\[plot\]"'):
        report.plot()


def test_bad_input_is_refused():
    model = small()
    with pytest.raises(ChoiceError, match=r"expected a number or a mapping with 'accuracy', got \{'top1': 1.0\}"):
        supernet_report(model, lambda model: {"top1": 1.0})
    with pytest.raises(ChoiceError, match=r"expected a number or a mapping with 'accuracy', got \{'xxx.{0,60} \.\.\.$"):
        supernet_report(model, lambda model: {"x" * 10**6: 1.0})
    with pytest.raises(ChoiceError, match="evaluate: expected a number, got tensor of shape"):
        supernet_report(model, lambda model: torch.zeros(3))
    with pytest.raises(ChoiceError, match="n_random: expected an int of at least 0, got -1"):
        supernet_report(model, size_score, n_random=-1)
    with pytest.raises(ChoiceError, match="evaluate: expected a function of the model, got 3"):
        supernet_report(model, 3)
    with pytest.raises(ChoiceError, match="evaluate: expected a number, got 'good'"):
        supernet_report(model, lambda model: "good")
    with pytest.raises(ChoiceError, match="embed_dim"):
        supernet_report(model, size_score, retrained={next(iter({search_space(small(embed_dim=[3, 5])).smallest()})): 1.0})
    with pytest.raises(ChoiceError, match="missing"):
        supernet_report(model, size_score, trained=[{"embed_dim": 8}])
