import copy
import gc
import math
import pickle
import weakref
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import CheckpointError as TorchCheckpointError
from torch.utils.checkpoint import checkpoint

from vitas import Choice, ChoiceError, Dim
from vitas.choice import as_choice, as_dim, take
from vitas.errors import CheckpointError, ShapeError
from vitas.sharing import coverage

WIDTHS = [1, 2, 4, 5, 7]
PATTERNS_AND_SIDES = [
    ("ordinal", "left"),
    ("bilateral", "left"),
    ("bilateral", "right"),
    ("cyclic", "left"),
    ("cyclic-chain", "left"),
    ("cyclic-paired", "left"),
]


def used_by(dim):
    """The active channels in order, by walking the ring."""
    start, length = dim.run
    return [(start + step) % dim.largest for step in range(length)]


def each(choice):
    """Activate every value in turn."""
    for value in choice.values:
        choice.active = value
        yield value


# -- values, probabilities, the active value ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Choice, Dim])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected at least one value, got none"),
        ([4, 2, 4], r"4 is given twice in \[4, 2, 4\]"),
        ([2, -4], "expected (positive values|values of at least 0), got -4"),
        ([True, 2], "expected an int or a float, got True"),
        ([np.True_, 2], r"expected an int or a float, got (np\.)?True_?"),
        ([2, math.nan], "expected an int or a float, got nan"),
        ([2, math.inf], "expected an int or a float, got inf"),
        ([2, "4"], "expected an int or a float, got '4'"),
        ([2, None], "expected an int or a float, got None"),
        ([torch.tensor(2)], r"expected an int or a float, got tensor\(2\)"),
        ("24", "expected several values, got '24'"),
        (4, "expected several values, got 4"),
        (None, "expected several values, got None"),
    ],
)
def test_bad_values_are_refused_with_the_name(kind, values, message):
    with pytest.raises(ChoiceError, match=f"^width: {message}"):
        kind(values, name="width")


def test_a_dim_takes_positive_ints_only():
    with pytest.raises(ChoiceError, match="width: expected positive values, got 0"):
        Dim([0, 2], name="width")
    with pytest.raises(ChoiceError, match=r"width: channel counts are ints, got \[2.0, 4.5\]"):
        Dim([2.0, 4.5], name="width")


@pytest.mark.parametrize("values", [[4, 2, 3], (3, 4, 2), range(2, 5), {2, 3, 4}, iter([4, 3, 2]), np.array([4, 2, 3])])
def test_values_are_kept_ascending_as_plain_ints_and_the_largest_is_active_first(values):
    dim = Dim(values)
    assert dim.values == (2, 3, 4)
    assert {type(value) for value in dim.values} == {int}
    assert (dim.smallest, dim.largest, dim.active) == (2, 4, 4)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([1], "expected 2 probabilities, one for each value, got 1"),
        ([1, 2, 3], "expected 2 probabilities, one for each value, got 3"),
        ([1, -1], "expected probabilities of at least 0 that are not all 0"),
        ([0, 0], "expected probabilities of at least 0 that are not all 0"),
        ([1, math.nan], "expected an int or a float, got nan"),
        ([1, True], "expected an int or a float, got True"),
        ([1, "1"], "expected an int or a float, got '1'"),
        (0.5, "expected"),
        ("ab", "expected"),
    ],
)
@pytest.mark.parametrize("kind", [Choice, Dim])
def test_bad_probabilities_are_refused_with_the_name(kind, p, message):
    with pytest.raises(ChoiceError, match=f"^p of width: {message}"):
        kind([2, 4], p=p, name="width")


def test_probabilities_are_normalised_and_equal_by_default():
    assert Choice([2, 4], p=[1, 3]).p == (0.25, 0.75)
    assert Choice([2, 4], p=np.array([0, 2])).p == (0, 1)
    assert Choice([2, 4, 6, 8]).p == (0.25,) * 4


@pytest.mark.parametrize(("value", "nearest"), [(3, 2), (5, 4), (-7, 2), (3.4, 4)])
def test_a_value_outside_is_refused_and_the_nearest_named(value, nearest):
    choice = Choice([2, 4], name="num_heads")
    choice.active = 2
    with pytest.raises(ChoiceError, match=rf"^num_heads: expected one of 2, 4, got {value} \(nearest: {nearest}\)$"):
        choice.active = value
    assert choice.active == 2


def test_values_and_probabilities_stay_as_they_are():
    choice = Dim([2, 4], p=[1, 3])
    for name in ("values", "p"):
        with pytest.raises(AttributeError):
            setattr(choice, name, (1, 2))
    assert (choice.values, choice.p) == ((2, 4), (0.25, 0.75))


@pytest.mark.parametrize("other", [torch.tensor(2), np.array(2), 2j, "2", None, Decimal("sNaN")])
def test_values_that_do_not_even_compare_are_refused_also_with_probabilities(other):
    with pytest.raises(ChoiceError, match=r"expected an int or a float, got|expected ints of at most"):
        Choice([10**30, other], p=[1, 1])


@pytest.mark.parametrize("value", [True, np.True_, math.nan, "2", None, [2], torch.tensor(2)])
def test_what_is_not_a_number_is_never_active(value):
    choice = Choice([1, 2])
    with pytest.raises(ChoiceError, match="expected one of 1, 2, got "):
        choice.active = value
    assert choice.active == 2


def test_numpy_numbers_become_active_as_plain_ones():
    choice = Choice([2, 4])
    choice.active = np.int32(2)
    assert type(choice.active) is int
    assert choice.active == 2


def test_many_legal_values_are_shortened_in_the_message():
    with pytest.raises(ChoiceError, match=r"101: did you mean 100\? \(100 are legal from 1 to 100\)"):
        Choice(range(1, 101)).active = 101


def test_fractions_round_as_python_does():
    tenths = [i / 10 for i in range(1, 11)]
    assert Dim.fractions(384, tenths).values == (38, 77, 115, 154, 192, 230, 269, 307, 346, 384)
    assert Dim.fractions(768, tenths).values == (77, 154, 230, 307, 384, 461, 538, 614, 691, 768)
    assert Dim.fractions(1440, tenths).values == tuple(144 * i for i in range(1, 11))
    dim = Dim.fractions(10, iter([0.5, 1]), sharing="ordinal", name="width", p=[1, 3])
    assert (dim.values, dim.sharing, dim.name, dim.p) == ((5, 10), "ordinal", "width", (0.25, 0.75))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, math.nan, True, "0.5", None])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ChoiceError, match=rf"^width: fractions lie in \(0, 1\], got {fraction!r}"):
        Dim.fractions(10, [0.5, fraction], name="width")


def test_fractions_that_round_to_one_count_are_refused():
    with pytest.raises(ChoiceError, match="width: 5 is given twice"):
        Dim.fractions(10, [0.5, 0.52], name="width")


def test_fractions_that_are_not_several_are_refused():
    with pytest.raises(ChoiceError, match="width: expected"):
        Dim.fractions(10, 0.5, name="width")


def test_layers_turn_plain_numbers_into_fixed_choices():
    dim, choice = Dim([2, 4]), Choice([0.5, 1.0])
    assert as_dim(dim) is dim
    assert as_choice(choice) is choice
    assert as_dim(np.int64(3)).fixed
    assert as_choice(0.5).values == (0.5,)


@pytest.mark.parametrize("value", [True, 4.0, "4", None, 0, -3, Choice([2, 4])])
def test_what_is_neither_a_positive_int_nor_a_dim_is_refused_with_the_name(value):
    with pytest.raises(ChoiceError, match=r"^in_features: expected"):
        as_dim(value, "in_features")


@pytest.mark.parametrize("value", [True, "4", None, math.nan, -3])
def test_what_is_neither_a_number_nor_a_choice_is_refused_with_the_name(value):
    with pytest.raises(ChoiceError, match=r"^num_heads: expected"):
        as_choice(value, "num_heads")


def test_a_side_needs_the_bilateral_pattern():
    dim = Dim([2, 4], name="width")
    with pytest.raises(ChoiceError, match="width shares its channels by 'cyclic', which has no right side"):
        dim.side = "right"
    with pytest.raises(ChoiceError, match=r"side: expected one of left, right, got 'rigth' \(nearest: right\)"):
        dim.side = "rigth"
    assert dim.side == "left"


def test_a_choice_prints_its_values_and_what_is_active():
    dim = Dim([2, 4, 8], name="width")
    dim.active = 4
    assert repr(dim) == "Dim(2, 4, 8, name='width', active=4)"
    assert dim.brief() == "4 of 2..8"
    assert Dim([3]).brief() == "3"


# -- taking the active channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sharing", "side"), PATTERNS_AND_SIDES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((7,), 0), ((7,), -1), ((7, 3), 0), ((3, 7), 1), ((7, 2, 3), 0), ((2, 7, 3), 1), ((2, 3, 7), -1)]
)
def test_take_is_indexing_with_the_channels_and_its_gradient_is_zero_elsewhere(sharing, side, shape, axis):
    dim = Dim(WIDTHS, sharing=sharing)
    dim.side = side
    for width in each(dim):
        used = torch.tensor(used_by(dim))
        assert len(used) == width
        assert torch.equal(dim.channels(), used)
        weight = torch.randn(shape, requires_grad=True)
        taken = dim.take(weight, axis=axis)
        assert torch.equal(taken, weight.index_select(axis, used))
        assert torch.equal(dim.take(weight.detach(), axis=axis), taken)
        upstream = torch.randn_like(taken)
        taken.backward(upstream)
        assert torch.equal(weight.grad, torch.zeros(shape).index_add(axis, used, upstream))


@pytest.mark.parametrize("rows_sharing", ["ordinal", "cyclic-chain"])
@pytest.mark.parametrize("columns_sharing", ["ordinal", "cyclic-chain"])
def test_two_axes_are_cut_at_once(rows_sharing, columns_sharing):
    rows, columns = Dim([2, 3, 5], sharing=rows_sharing), Dim([1, 4, 6], sharing=columns_sharing)
    for _ in each(rows):
        for _ in each(columns):
            weight, bias = torch.randn(5, 6, 2, requires_grad=True), torch.randn(5, requires_grad=True)
            taken = take(weight=(weight, rows, columns), bias=(bias, rows), absent=(None, rows))
            assert list(taken) == ["weight", "bias"]
            i, j = torch.tensor(used_by(rows)), torch.tensor(used_by(columns))
            assert torch.equal(taken["weight"], weight[i[:, None], j])
            assert torch.equal(taken["bias"], bias[i])
            upstream = torch.randn_like(taken["weight"])
            taken["weight"].backward(upstream)
            expected = torch.zeros_like(weight)
            expected[i[:, None], j] = upstream
            assert torch.equal(weight.grad, expected)
            assert bias.grad is None  # the loss did not use it


def test_an_axis_may_be_left_whole():
    dim = Dim([2, 5], sharing="cyclic-chain")
    dim.active = 2
    weight = torch.randn(3, 5)
    assert torch.equal(take(weight=(weight, None, dim))["weight"], weight[:, used_by(dim)])


def test_the_full_width_is_the_tensor_itself():
    weight = torch.randn(7, requires_grad=True)
    assert Dim(WIDTHS).take(weight) is weight


def test_first_and_second_derivatives_agree_with_differences():
    rows, columns = Dim([2, 4]), Dim([2, 3], sharing="ordinal")
    rows.active, columns.active = 2, 2
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def cubes(weight):
        return take(weight=(weight, rows, columns))["weight"] ** 3

    assert torch.autograd.gradcheck(cubes, weight)
    assert torch.autograd.gradgradcheck(cubes, weight)


def test_a_tensor_of_another_size_is_refused_with_the_name():
    dim = Dim(WIDTHS, name="embed_dim")
    with pytest.raises(ShapeError, match=r"embed_dim: expected 7 channels along axis 1, got shape \(7, 5\)"):
        dim.take(torch.randn(7, 5), axis=1)
    with pytest.raises(ShapeError, match=r"embed_dim: expected 7 channels along axis 0, got shape \(8,\)"):
        take(gain=(torch.randn(8), dim))
    with pytest.raises(ShapeError, match=r"embed_dim: axis 2 of a tensor of shape \(7, 5\)"):
        dim.take(torch.randn(7, 5), axis=2)


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [Choice([3, 6, 12, 16]), Dim([3, 6, 12, 16]), Dim([3, 6, 12, 16], sharing="cyclic-chain")])
def test_heads_times_64_run_in_whole_heads_and_follow_their_factor(heads):
    for inner in (heads * 64, 64 * heads, heads * 2 * 32):
        assert inner.values == (192, 384, 768, 1024)
        for _ in each(heads):
            assert inner.active == 64 * heads.active
            start, length = inner.run
            assert start % 64 == 0
            assert length == inner.active
            if isinstance(heads, Dim):
                assert (start, length) == (64 * heads.run[0], 64 * heads.run[1])


def test_ratio_times_width_is_the_whole_part_of_the_product_and_follows_both():
    ratio, width = Choice([3, 3.5, 4]), Dim([18, 25, 33])
    hidden = ratio * width
    assert hidden.values == (54, 63, 72, 75, 87, 99, 100, 115, 132)
    for _ in each(ratio):
        for _ in each(width):
            assert hidden.active == int(width.active * ratio.active)
            assert hidden.run[1] == hidden.active
    assert hidden.table().tolist() == [[int(w * r) for w in width.values] for r in ratio.values]


def test_products_multiply_on():
    ratio, heads = Choice([2, 3]), Choice([3, 5])
    inner = heads * 8
    hidden = ratio * inner
    for _ in each(ratio):
        for _ in each(heads):
            assert hidden.active == ratio.active * inner.active
            assert hidden.run[0] % 8 == 0


@st.composite
def factors(draw):
    def weighted(values):
        values = sorted(values)
        return values, draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))

    ratios, ratio_p = weighted(draw(st.sets(st.integers(2, 9), min_size=1, max_size=4)))
    widths, width_p = weighted(draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)))
    return Choice([r / 2 for r in ratios], p=ratio_p), widths, width_p


@given(factors(), st.sampled_from(["cyclic", "cyclic-chain"]))
@settings(max_examples=60, deadline=None)
def test_derived_dims_share_fairly_too(ratio_and_widths, sharing):
    ratio, widths, p = ratio_and_widths
    hidden = ratio * Dim([2 * width for width in widths], sharing=sharing, p=p)
    assert sum(hidden.p) == pytest.approx(1)
    assert coverage(hidden).spread <= max(hidden.p) * len(hidden.values) + 1e-9


def test_a_derived_value_has_the_probability_of_its_factors():
    hidden = Choice([2, 3], p=[1, 3]) * Dim([4, 6], p=[1, 1])
    by_value = dict(zip(hidden.values, hidden.p, strict=True))
    assert by_value == pytest.approx({8: 0.125, 12: 0.5, 18: 0.375})  # 12 is 2 * 6 and 3 * 4


def test_a_product_takes_its_sides_from_a_bilateral_factor():
    ratio, width = Choice([2, 3]), Dim([5, 8], sharing="bilateral")
    hidden = ratio * width
    ratio.active, width.active, width.side = 2, 5, "right"
    assert hidden.run == (24 - 10, 10)
    width.side = "left"
    assert hidden.run == (0, 10)


def whole_starts(values, largest, p):
    """A rule of one's own: gap 1."""
    return [0, *values[:-1]]


def test_a_product_of_a_dim_with_a_rule_of_its_own():
    width = Dim([2, 4, 6], sharing=whole_starts)
    for hidden in (Choice([2]) * width, Choice([1, 5]) * width):
        assert coverage(hidden).spread <= max(hidden.p) * len(hidden.values) + 1e-9
        for _ in each(width):
            assert hidden.active == hidden.bases[0].active * width.active


def test_a_product_of_a_paired_dim_is_fair_and_does_not_warn():
    hidden = Choice([3, 6, 9]) * Dim([3, 4, 8, 9], sharing="cyclic-paired")  # a warning is an error here
    assert coverage(hidden).spread <= max(hidden.p) * len(hidden.values) + 1e-9


@pytest.mark.parametrize(
    ("ratios", "widths", "message"),
    [
        ([2, 2.1], [4], "mlp_ratio: 2 and 2.1 give the same channel count"),
        ([0.5, 1.0], [3, 2], "embed_dim: 2 and 3 give the same channel count"),
        ([0, 1], [4], r"mlp_ratio \* embed_dim: a product of 0 channels"),
        ([0.1], [4], r"mlp_ratio \* embed_dim: a product of 0 channels"),
    ],
)
def test_products_that_are_equal_or_empty_are_refused(ratios, widths, message):
    with pytest.raises(ChoiceError, match=message):
        Choice(ratios, name="mlp_ratio") * Dim(widths, name="embed_dim")


def test_a_product_is_set_through_its_factors():
    heads = Choice([2, 4], name="num_heads")
    inner = heads * 64
    with pytest.raises(ChoiceError, match=r"num_heads \* 64 follows its factors; set num_heads instead"):
        inner.active = 128
    assert (heads.active, inner.active) == (4, 256)


def test_the_side_of_a_product_is_set_through_its_factors():
    width = Dim([2, 4], sharing="bilateral", name="embed_dim")
    hidden = width * 2
    with pytest.raises(ChoiceError, match="follows its factors; set embed_dim instead"):
        hidden.side = "right"
    assert (width.side, hidden.side) == ("left", "left")


def test_factors_that_make_no_sense_are_refused():
    heads = Choice([2, 4], name="num_heads")
    with pytest.raises(ChoiceError, match="num_heads stands twice in one product"):
        heads * heads
    for scale in (0, -1):
        with pytest.raises(ChoiceError, match="expected a positive number"):
            heads * scale
    for scale in (64.0, True, "64", None):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            heads * scale


def test_a_product_that_nobody_holds_is_forgotten():
    heads = Choice([2, 4])
    inner = weakref.ref(heads * 64)
    gc.collect()
    assert inner() is None
    heads.active = 2


# -- copies ------------------------------------------------------------------------------------------------------------


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_keeps_values_ties_and_what_is_active_and_lives_on_its_own(copied):
    width, heads = Dim([2, 4, 8], sharing="bilateral", name="width", p=[1, 1, 2]), Choice([2, 4], name="heads")
    inner, hidden = heads * 16, Choice([2, 3]) * width
    width.active, width.side, heads.active = 4, "right", 2
    old = {"stream": width, "again": width, "heads": heads, "inner": inner, "hidden": hidden}
    new = copied(old)

    assert new["stream"] is new["again"]
    assert new["stream"] is not width
    assert repr(new) == repr(old)
    assert (new["stream"].p, new["stream"].sides, new["stream"].side) == (width.p, width.sides, "right")
    for name in ("stream", "inner", "hidden"):
        assert new[name].run == old[name].run
        weight = torch.randn(new[name].largest)
        assert torch.equal(new[name].take(weight), old[name].take(weight))

    before = {name: choice.active for name, choice in old.items()}
    new["stream"].active, new["stream"].side, new["heads"].active = 2, "left", 4
    assert {name: choice.active for name, choice in old.items()} == before
    assert width.side == "right"
    assert (new["inner"].active, new["hidden"].run) == (64, (0, 6))
    heads.active = 4
    heads.active = 2
    assert new["inner"].active == 64


def test_a_dim_with_a_rule_of_its_own_is_pickled_without_the_rule():
    dim = pickled(Dim([2, 4, 6], sharing=lambda values, largest, p: [0, 2, 4]))
    assert dim.sides == (((2, 2), (4, 4), (0, 6)),)


# -- other subnets at backward, and function transforms ----------------------------------------------------------------


def scaled_by(dim, weight):
    return lambda x: (x * dim.take(weight)).sin()


def two_sided():
    dim = Dim([2, 4, 8], sharing="bilateral")
    dim.active = 4
    return dim


def test_a_foreign_checkpoint_gives_the_same_gradients():
    dim, weight, x = two_sided(), torch.randn(8, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    expected = torch.autograd.grad(scaled_by(dim, weight)(x).sum(), [weight, x])
    got = torch.autograd.grad(checkpoint(scaled_by(dim, weight), x, use_reentrant=False).sum(), [weight, x])
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_foreign_checkpoint_notices_another_side_of_equal_size_at_backward(frozen):
    dim, weight, x = two_sided(), torch.randn(8, requires_grad=not frozen), torch.randn(3, 4, requires_grad=True)
    y = checkpoint(scaled_by(dim, weight), x, use_reentrant=False)
    dim.side = "right"
    with pytest.raises(TorchCheckpointError, match="different metadata"):
        y.sum().backward()


def test_a_foreign_checkpoint_is_content_when_the_subnet_came_back():
    dim, weight, x = two_sided(), torch.randn(8, requires_grad=True), torch.randn(3, 4)
    y = checkpoint(scaled_by(dim, weight), x, use_reentrant=False)
    dim.side, dim.active = "right", 2
    dim.side, dim.active = "left", 4
    y.sum().backward()
    assert torch.equal(weight.grad[4:], torch.zeros(4))
    assert weight.grad[:4].abs().min() > 0


def test_without_a_checkpoint_gradients_belong_to_the_subnet_that_ran():
    dim, weight = two_sided(), torch.randn(8, requires_grad=True, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    left = scaled_by(dim, weight)(x).sum()
    dim.side = "right"
    right = scaled_by(dim, weight)(x).sum()
    dim.active = 2
    (left + right).backward()
    expected = (x.repeat(1, 2) * (x.repeat(1, 2) * weight).cos()).sum(0)
    torch.testing.assert_close(weight.grad, expected.detach())


@pytest.mark.parametrize("reading", [lambda dim, weight: dim.take(weight), lambda dim, weight: weight[: dim.active]])
def test_reentrant_checkpointing_is_refused(reading):
    dim, weight, x = two_sided(), torch.randn(8, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    y = checkpoint(lambda x: x * reading(dim, weight), x, use_reentrant=True)
    with pytest.raises(CheckpointError, match=r"reentrant checkpointing recomputes .*use_reentrant=False"):
        y.sum().backward()


@pytest.mark.parametrize("sharing", ["ordinal", "cyclic-chain"])
def test_function_transforms(sharing):
    dim = Dim([2, 4, 7], sharing=sharing)
    for _ in each(dim):
        used = used_by(dim)
        weights, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 7, 3), (dim.active, 3)))
        assert torch.equal(torch.func.vmap(dim.take)(weights), weights[:, used])

        def loss(weight, x=x):
            return (dim.take(weight) * x).sin().sum()

        expected = torch.zeros(7, 3, dtype=torch.float64).index_copy(0, torch.tensor(used), x * (weights[0, used] * x).cos())
        torch.testing.assert_close(torch.func.grad(loss)(weights[0]), expected)
        gradients = torch.func.vmap(torch.func.grad(loss))(weights)
        torch.testing.assert_close(gradients, torch.stack([torch.func.grad(loss)(weight) for weight in weights]))


def test_a_ratio_of_whole_heads_is_the_rounded_product():
    ratio, heads = Choice([3.5, 4.0]), Choice([3, 4])
    hidden = ratio * (heads * 64)
    for r in ratio.values:
        for h in heads.values:
            ratio.active, heads.active = r, h
            assert hidden.active == int(r * h * 64)


def test_slices_can_be_differentiated_twice_at_every_width():
    dim = Dim([2, 5, 7])
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    for width in dim.values:
        dim.active = width
        assert torch.autograd.gradgradcheck(lambda w: dim.take(w).pow(3), weight)


def test_probabilities_go_with_the_values_as_given():
    assert Choice([16, 14, 12], p=[0.5, 0.3, 0.2]).p == pytest.approx((0.2, 0.3, 0.5))
    dim = Dim([8, 4], p=[0.75, 0.25])
    assert (dim.values, dim.p) == ((4, 8), pytest.approx((0.25, 0.75)))


@pytest.mark.parametrize("sharing", ["cyclic", "cyclic-chain"])
def test_a_gradient_that_can_be_differentiated_is_the_gradient(sharing):
    dim = Dim([2, 3, 5], sharing=sharing)
    weight = torch.randn(5, 4, requires_grad=True)
    for channels in dim.values:
        dim.active = channels
        (plain,) = torch.autograd.grad(dim.take(weight).pow(3).sum(), weight)
        (again,) = torch.autograd.grad(dim.take(weight).pow(3).sum(), weight, create_graph=True)
        assert again.requires_grad
        assert torch.equal(plain, again)


def test_whole_numbers_times_a_dim_run_where_the_dim_runs():
    def rule(values, largest, p):
        return [3, 0, 0]

    for sharing in ("cyclic-paired", rule):
        dim = Dim([2, 3, 5], sharing=sharing)
        assert dim.sides != Dim([2, 3, 5]).sides
        for channels in dim.values:
            dim.active = channels
            start, length = dim.run
            assert (dim * 8).run == (8 * start, 8 * length)


def test_fractions_of_numpy_are_fractions():
    assert Dim.fractions(8, np.array([0.5, 1.0], dtype=np.float32)).values == (4, 8)


@pytest.mark.parametrize("several", [torch.tensor(2), np.array(2)])
def test_tensors_without_an_axis_are_not_several(several):
    with pytest.raises(ChoiceError, match="expected several values"):
        Choice(several)
    with pytest.raises(ChoiceError, match="expected 2 probabilities"):
        Choice([1, 2], p=several)
    with pytest.raises(ChoiceError, match="expected several fractions"):
        Dim.fractions(8, several)


# -- values that leave or join -------------------------------------------------------------------------------------------


def test_values_that_join_leave_runs_and_the_active_value_as_they_are():
    dim = Dim([2, 4, 6, 8])
    double, times = dim * 2, Choice([1, 2], name="times") * dim
    before = [dict(zip(d.values, d.sides[0], strict=True)) for d in (dim, double, times)]
    dim.active = 4
    dim.add([3, 4, 5])
    assert dim.values == (2, 3, 4, 5, 6, 8)
    assert (dim.active, double.active, times.active) == (4, 8, 8)
    for d, runs in zip((dim, double, times), before, strict=True):
        assert {width: run for width, run in zip(d.values, d.sides[0], strict=True) if width in runs} == runs
        assert all(run[1] == width for width, run in zip(d.values, d.sides[0], strict=True))
    assert [(start * 2, length * 2) for start, length in dim.sides[0]] == list(double.sides[0])
    dim.active = 3
    assert (double.active, times.active) == (6, 6)
    assert double.run == tuple(2 * number for number in dim.run)


def test_runs_are_taken_over_and_others_laid_around_them():
    dim = Dim([2, 4, 8])
    follows, between = dim * 3, Choice([1, 2]) * dim
    dim.adopt({2: [(7, 2)]})
    assert dim.sides[0][0] == (7, 2)
    assert follows.sides[0][0] == (21, 6)
    assert dim.sides[0][1] == (1, 4)  # away from channels 7 and 0
    assert between.values == (2, 4, 8, 16)
    for runs, message in (
        ({2: [(8, 2)]}, "on a ring of 8"),
        ({2: [(0, 3)]}, "1 run of 2"),
        ({2: [(0, 2)] * 2}, "1 run of 2"),
    ):
        with pytest.raises(ChoiceError, match=message):
            dim.adopt(runs)
    with pytest.raises(ChoiceError, match=r"Dim \* 3: 6 channels use those of Dim"):
        follows.adopt({6: [(0, 6)]})
    for change in (lambda: follows.add([9]), lambda: follows.leave([0])):
        with pytest.raises(ChoiceError, match="follows its factors"):
            change()
