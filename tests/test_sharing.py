import warnings
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitas import Choice, ChoiceError, Dim
from vitas.sharing import coverage, run_of_new

TENTHS = [i / 10 for i in range(1, 11)]

# METHOD.md 2.3: starts of the widths 1..10, uses of group 0..9, spread, pair-use sd, pair-use range, adjacent overlap.
TABLE = {
    "ordinal": ("0 0 0 0 0 0 0 0 0 0", "10 9 8 7 6 5 4 3 2 1", 9, 2.211, (1, 9), 45),
    "ascending chain": ("0 1 3 6 0 5 1 8 6 5", "6 6 6 6 6 5 5 5 5 5", 1, 0.869, (3, 6), 25),
    "gap 1": ("0 1 2 3 4 5 6 7 8 9", "6 5 6 5 6 5 6 5 6 5", 1, 0.843, (2, 5), 37),
    "gap 2": ("0 2 4 6 8 0 2 4 6 8", "6 5 6 5 6 5 6 5 6 5", 1, 0.816, (2, 5), 31),
    "paired": ("0 1 2 3 0 7 5 3 1 0", "6 6 6 6 6 5 5 5 5 5", 1, 0.816, (2, 6), 35),
    "best pair evenness": ("0 8 7 1 3 3 9 6 4 0", "5 5 5 6 6 5 5 6 6 6", 1, 0.699, (3, 5), 33),
    "most even pairs at overlap 37": ("0 9 7 5 3 1 8 6 4 0", "6 5 5 5 5 5 6 6 6 6", 1, 0.760, (2, 5), 37),
    "max overlap": ("0 9 9 8 6 2 1 1 1 0", "6 6 5 5 5 5 6 6 5 6", 1, 1.350, (1, 6), 41),
}
NAMED = {"ordinal": "ordinal", "cyclic-chain": "ascending chain", "cyclic": "gap 1", "cyclic-paired": "paired"}


def ints(row):
    return [int(n) for n in row.split()]


def dim_from(starts, widths=range(1, 11), p=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the unfair ones warn
        return Dim(list(widths), sharing=lambda values, largest, p: starts, p=p)


def used_sets(dim, side=0):
    """The channels of each width, found by walking the ring."""
    return [{(start + step) % dim.largest for step in range(length)} for start, length in dim.sides[side]]


def uses(dim):
    """Uses of each channel in as many draws as there are widths; half for each side of a bilateral width."""
    total = [0.0] * dim.largest
    for side in range(len(dim.sides)):
        for p, used in zip(dim.p, used_sets(dim, side), strict=True):
            for channel in used:
                total[channel] += p * len(dim.values) / len(dim.sides)
    return total


def pair_uses(dim):
    sets = used_sets(dim)
    return {(i, j): sum(i in s and j in s for s in sets) for i, j in permutations(range(dim.largest), 2)}


def is_rotation(a, b):
    a, b = list(a), list(b)
    return any(a[turn:] + a[:turn] == b for turn in range(len(a)))


# -- METHOD.md 2.3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE)
def test_every_row_of_the_coverage_table(row):
    starts, counts, spread, pair_sd, pair_range, overlap = TABLE[row]
    dim = dim_from(ints(starts))
    found = coverage(dim)
    assert is_rotation(found.counts.round(9).tolist(), ints(counts))
    assert found.spread == pytest.approx(spread)
    assert found.pair_sd == pytest.approx(pair_sd, abs=5e-4)
    assert found.pair_range == pytest.approx(pair_range)
    assert found.adjacent_overlap == pytest.approx(overlap)


def test_the_bilateral_row_of_the_table_counts_half_for_each_side():
    found = coverage(Dim(range(1, 11), sharing="bilateral"))
    assert found.paths.shape == (20, 10)
    np.testing.assert_allclose(found.counts, 5.5)  # 11 in 20 paths
    assert found.spread == pytest.approx(0)
    assert found.pair_sd == pytest.approx(1.106, abs=5e-4)
    assert found.pair_range == pytest.approx((1, 5))
    assert found.adjacent_overlap == pytest.approx(45)


@pytest.mark.parametrize("row", TABLE)
def test_coverage_equals_counting_with_sets(row):
    dim = dim_from(ints(TABLE[row][0]))
    found, pairs = coverage(dim), pair_uses(dim)
    assert found.counts.tolist() == pytest.approx(uses(dim))
    assert {pair: round(found.pair_use[pair]) for pair in pairs} == pairs
    assert found.pair_sd == pytest.approx(np.std(list(pairs.values())))
    assert found.adjacent_overlap == sum(len(a & b) for a, b in pairwise(used_sets(dim)))
    assert [set(np.flatnonzero(path)) for path in found.paths] == used_sets(dim)


@pytest.mark.parametrize("pattern", NAMED)
def test_named_patterns_are_their_rows_turned_so_that_the_largest_width_starts_at_0(pattern):
    starts = ints(TABLE[NAMED[pattern]][0])
    runs = Dim(range(1, 11), sharing=pattern).sides[0]
    assert runs == tuple(((start - starts[-1]) % 10, width) for width, start in enumerate(starts, 1))


def test_bilateral_runs_are_the_first_and_the_last_channels():
    left, right = Dim([2, 3, 5], sharing="bilateral").sides
    assert left == ((0, 2), (0, 3), (0, 5))
    assert right == ((3, 2), (2, 3), (0, 5))


def test_coverage_weighs_widths_by_their_probability():
    dim = Dim([1, 2, 4], sharing="ordinal", p=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(coverage(dim).counts, [3, 1.5, 0.75, 0.75])


def test_a_fixed_dim_has_coverage():
    assert coverage(Dim([1])).counts.tolist() == [1]
    assert coverage(Dim([3])).spread == 0


# -- fairness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [230, 384, 480, 960, 1440])
def test_tenths_serve_half_of_the_channels_5_and_half_6_widths(largest):
    found = uses(Dim.fractions(largest, TENTHS))
    assert sorted(map(round, found)) == [5] * (largest // 2) + [6] * (largest // 2)


def test_tenths_of_384_are_laid_with_gap_1():
    dim = Dim.fractions(384, TENTHS)
    gap_1 = [0, *dim.values[:-1]]  # the tenth number k starts k - 1 tenths along
    assert [start for start, _ in dim.sides[0]] == [(start - gap_1[-1]) % 384 for start in gap_1]


def test_tenths_of_768_fall_back_to_the_chain_where_gap_1_would_be_unfair():
    widths = Dim.fractions(768, TENTHS).values
    gap_1 = dim_from([0, *widths[:-1]], widths)
    assert sorted(set(map(round, uses(gap_1)))) == [4, 5, 6, 7]
    dim = Dim(widths, sharing="cyclic")
    assert dim.sides == Dim(widths, sharing="cyclic-chain").sides
    assert max(uses(dim)) - min(uses(dim)) == pytest.approx(1)


@pytest.mark.parametrize("groups", range(2, 24))
def test_gap_1_is_exact_for_odd_rings_and_one_off_for_even_ones(groups):
    dim = Dim(range(1, groups + 1))
    assert {(here[0] - there[0]) % groups for there, here in pairwise(dim.sides[0])} == {1 % groups}
    assert coverage(dim).spread == pytest.approx(1 - groups % 2)


widths_of = st.sets(st.integers(1, 60), min_size=1, max_size=12).map(sorted)


@st.composite
def weighted_widths(draw):
    widths = draw(widths_of)
    p = draw(st.lists(st.integers(1, 20), min_size=len(widths), max_size=len(widths)))
    return widths, p


def relative_spread(dim):
    """Spread in units of the most probable width's uses: at most 1 is fair."""
    found = uses(dim)
    return (max(found) - min(found)) / (len(dim.values) * max(dim.p))


@given(widths_of)
@settings(max_examples=60, deadline=None)
def test_chain_and_cyclic_and_paired_are_fair_for_any_widths(widths):
    for sharing in ("cyclic-chain", "cyclic", "cyclic-paired"):
        assert relative_spread(Dim(widths, sharing=sharing)) <= 1 + 1e-9


@given(weighted_widths())
@settings(max_examples=60, deadline=None)
def test_chain_and_cyclic_are_fair_for_any_probabilities(widths_and_p):
    widths, p = widths_and_p
    for sharing in ("cyclic-chain", "cyclic"):
        assert relative_spread(Dim(widths, sharing=sharing, p=p)) <= 1 + 1e-9


@given(weighted_widths(), st.sampled_from(["ordinal", "bilateral", "cyclic", "cyclic-chain"]))
@settings(max_examples=60, deadline=None)
def test_coverage_equals_counting_for_any_widths_and_probabilities(widths_and_p, sharing):
    widths, p = widths_and_p
    dim = Dim(widths, sharing=sharing, p=p)
    found = coverage(dim)
    np.testing.assert_allclose(found.counts, uses(dim), atol=1e-9)
    np.testing.assert_allclose(found.pair_use.diagonal(), found.counts)
    assert found.spread == pytest.approx(np.ptp(found.counts))


@given(widths_of, st.data())
@settings(max_examples=40, deadline=None)
def test_pair_use_at_one_distance_is_the_same_in_sum_for_any_starts(widths, data):
    largest = widths[-1]
    starts = data.draw(st.lists(st.integers(0, largest - 1), min_size=len(widths), max_size=len(widths)))
    pair_use = coverage(dim_from(starts, widths)).pair_use
    for d in range(1, largest):
        expected = sum(max(c - d, 0) + max(c - largest + d, 0) for c in widths)  # METHOD.md 2.2.6
        assert pair_use[np.arange(largest), (np.arange(largest) + d) % largest].sum() == pytest.approx(expected)


@given(widths_of, st.sampled_from(["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"]))
@settings(max_examples=60, deadline=None)
def test_the_largest_width_starts_at_0_in_every_pattern(widths, sharing):
    for side in Dim(widths, sharing=sharing).sides:
        assert side[-1] == (0, widths[-1])
        assert [length for _, length in side] == widths


@pytest.mark.parametrize("widths", [range(1, 11), range(1, 12), [3, 8, 12, 16, 21, 24], Dim.fractions(768, TENTHS).values])
def test_complementary_widths_tile_the_ring_when_paired(widths):
    dim = Dim(widths, sharing="cyclic-paired")
    used = dict(zip(dim.values, used_sets(dim), strict=True))
    pairs = [(c, dim.largest - c) for c in dim.values if 2 * c < dim.largest and dim.largest - c in used]
    assert pairs
    for one, other in pairs:
        assert used[one] | used[other] == set(range(dim.largest))
        assert not used[one] & used[other]


def test_the_most_probable_widths_lead_the_chain():
    dim = Dim([1, 2, 3, 6], sharing="cyclic-chain", p=[0.1, 0.2, 0.3, 0.4])
    assert dim.sides[0] == ((11 % 6, 1), (9 % 6, 2), (6 % 6, 3), (0, 6))


# -- rules of one's own ------------------------------------------------------------------------------------------------


def test_an_unfair_rule_warns_and_a_fair_one_does_not():
    message = r"unfair sharing over widths 1\.\.4: some channels serve 3 widths more than others.*'cyclic-chain'"
    with pytest.warns(UserWarning, match=message):
        Dim([1, 2, 3, 4], sharing=lambda values, largest, p: [0, 0, 0, 0])
    Dim([1, 2, 3, 4], sharing=lambda values, largest, p: [0, 1, 2, 3])  # a warning would be an error here


def test_the_paired_pattern_warns_where_probabilities_make_it_unfair():
    with pytest.warns(UserWarning, match="unfair sharing"):
        Dim(range(1, 11), sharing="cyclic-paired", p=[1, 1, 1, 1, 1, 1, 9, 9, 9, 9])


def test_a_rule_is_called_with_widths_ring_and_probabilities():
    calls = []
    Dim([4, 2], p=[1, 3], sharing=lambda *arguments: calls.append(arguments) or [0, 0])
    ((values, largest, p),) = calls
    assert (list(values), largest, list(p)) == ([2, 4], 4, [0.75, 0.25])


@pytest.mark.parametrize("starts", [[0, 1], [0, 1, 2, 3], [0, 1, 0.5], ["0", "1", "2"], None, 3])
def test_a_rule_that_does_not_give_one_start_for_each_width_is_refused(starts):
    with pytest.raises(ChoiceError, match="expected a rule that gives 3 starts"):
        Dim([1, 2, 3], sharing=lambda values, largest, p: starts)


@pytest.mark.parametrize("dim", [5, [1, 2], None, Choice([1, 2])])
def test_coverage_of_what_has_no_runs_is_refused(dim):
    with pytest.raises(ChoiceError, match="coverage: expected a Dim, got"):
        coverage(dim)


def test_an_unknown_pattern_names_the_nearest():
    with pytest.raises(ChoiceError, match=r"sharing: expected one of ordinal, .*, got 'ciclic' \(nearest: cyclic\)"):
        Dim([1, 2], sharing="ciclic")


@pytest.mark.parametrize("sharing", [None, 3, ["cyclic"]])
def test_a_pattern_that_is_neither_a_name_nor_a_rule_is_refused(sharing):
    with pytest.raises(ChoiceError, match="sharing: expected"):
        Dim([1, 2], sharing=sharing)


def test_an_array_is_no_pattern():
    with pytest.raises(ChoiceError, match="sharing: expected one of"):
        Dim([1, 2], sharing=np.zeros((2, 2)))


# -- widths that join later --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharing", "sides", "width", "run"),
    [
        ("ordinal", [[(0, 4), (0, 8)]], 6, ((0, 6),)),
        ("bilateral", [[(0, 4), (0, 8)], [(4, 4), (0, 8)]], 6, ((0, 6), (2, 6))),
        ("cyclic-paired", [[(3, 5), (0, 8)]], 3, ((0, 3),)),  # beside its complement
        ("cyclic-paired", [[(3, 5), (0, 8)]], 2, ((0, 2),)),  # which has none
        ("cyclic", [[(1, 4), (0, 8)]], 3, ((5, 3),)),  # channels 5, 6, 7, 0 serve one width less
        ("cyclic", [[(1, 4), (0, 8)]], 4, ((5, 4),)),  # around the end
        ("cyclic", [[(0, 8)]], 4, ((0, 4),)),  # the first of equal ones
        ("mine", [[(0, 4), (4, 4), (0, 8)]], 4, ((4, 4),)),  # (0, 4) is used more often
    ],
)
def test_where_a_width_that_joins_comes_to_stand(sharing, sides, width, run):
    p = [0.5, 0.2, 0.3] if sharing == "mine" else [1 / len(sides[0])] * len(sides[0])
    assert run_of_new(sharing, width, sides, p) == run
