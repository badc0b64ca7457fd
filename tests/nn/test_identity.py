import itertools
from math import comb

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.contract import Contract, is_plain, randomize
from vitas import ChoiceError, Dim, VitasError, activate_subnet, active_subnet, export_subnet, search_space
from vitas.nn.depth import ShiftableIdentity, shift_identities
from vitas.nn.drop_path import DropPath
from vitas.nn.layer import exported
from vitas.nn.linear import CyclicLinear


class TestShiftableIdentity(Contract):
    def build(self, sharing):
        self.hidden = [Dim([2, 3], sharing=sharing) for _ in range(3)]
        blocks = ShiftableIdentity(nn.Sequential(CyclicLinear(4, h), nn.GELU(), CyclicLinear(h, 4)) for h in self.hidden)
        return blocks, [blocks.depth, self.hidden[0], self.hidden[2]]

    def inputs(self, layer):
        return torch.randn(2, 4)

    def reference(self, layer, x):
        for slot in list(layer)[: layer.depth.active]:
            fc1, act, fc2 = slot
            used = fc1.out_dim.channels()
            x = nn.functional.linear(x, fc1.weight[used], fc1.bias[used])
            x = nn.functional.linear(act(x), fc2.weight[:, used], fc2.bias)
        return x


def linears(n, **options):
    return ShiftableIdentity((CyclicLinear(4, 4) for _ in range(n)), **options)


def test_blocks_beyond_the_depth_neither_run_nor_get_gradient():
    row = randomize(linears(4))
    row.depth.active = 2
    x = torch.randn(3, 4)
    assert torch.equal(row(x), row[1](row[0](x)))
    row(x).sum().backward()
    assert [block.weight.grad is None for block in row] == [False, False, True, True]


def test_keys_and_indexing_are_those_of_sequential():
    assert list(linears(2).state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    row = linears(3)
    assert row[-1] is row[2] is list(row)[2]
    with pytest.raises(IndexError):
        row[3]


def test_a_slice_is_refused_and_what_its_message_says_works():
    row = linears(3)
    row.depth.active = 2
    with pytest.raises(VitasError, match=r"list\(row\)\[1:\] gives the blocks, row.running\(\)\[1:\] those that run"):
        row[1:]
    assert list(row)[1:] == [row[1], row[2]]
    assert row.running()[1:] == [row[1]]
    assert len(exported(row)[1:]) == 1


def test_depth_law_is_the_prior_of_the_depth_choice():
    assert linears(3).depth.p == pytest.approx([1 / 3] * 3)
    assert linears(3, p=[0.2, 0.3, 0.5]).depth.p == pytest.approx([0.2, 0.3, 0.5])
    n, q = 3, 0.25
    binomial = [comb(n, m) * (1 - q) ** m * q ** (n - m) for m in (1, 2, 3)]
    assert linears(3, p=q).depth.p == pytest.approx([p / sum(binomial) for p in binomial])
    assert linears(4, min_depth=3).depth.values == (3, 4)


def test_a_slot_that_almost_never_runs_gets_a_warning():
    with pytest.warns(UserWarning, match=r"slots 11..15 run in fewer than 1 of 16 draws"):
        linears(16, p=0.5)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_shifting_keeps_the_blocks_in_order_and_is_idempotent(n):
    classes = set()
    for slots in itertools.product([None, "a", "b"], repeat=n):
        shifted = shift_identities(slots)
        assert [slot for slot in shifted if slot] == [slot for slot in slots if slot]
        assert sorted(map(str, shifted)) == sorted(map(str, slots))
        assert shift_identities(shifted) == shifted
        assert None not in itertools.takewhile(lambda slot: slot is not None, shifted)
        classes.add(tuple(shifted))
    assert len(classes) == sum(2**m for m in range(n + 1))


def test_without_shifting_every_slot_has_a_gene():
    row = randomize(linears(3, shift=False))
    space = search_space(row)
    assert space.size == 2**3
    assert list(space.choices) == ["use.0", "use.1", "use.2"]
    activate_subnet(row, {"use.0": 1, "use.1": 0, "use.2": 1})
    x = torch.randn(3, 4)
    assert torch.equal(row(x), row[2](row[0](x)))
    plain = export_subnet(row)
    assert len(plain) == 2
    assert torch.equal(plain(x), row(x))


def test_without_shifting_a_float_is_the_identity_probability():
    assert linears(2, shift=False, p=0.25).use[0].p == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {}, "at least one block"),
        (3, {"min_depth": 0}, r"min_depth: expected an int in 1..3, got 0"),
        (3, {"min_depth": 4}, r"min_depth: expected an int in 1..3, got 4"),
        (3, {"p": [0.5, 0.5]}, "expected 3 probabilities"),
        (3, {"p": 1.0}, r"number in \[0, 1\)"),
        (3, {"shift": False, "p": [0.5, 0.2, 0.3]}, "one identity probability"),
        (3, {"shift": False, "min_depth": 2}, "min_depth: without shifting"),
    ],
)
def test_laws_and_depths_that_do_not_fit_are_refused(n, options, message):
    with pytest.raises(ChoiceError, match=message):
        linears(n, **options)


def test_drop_path_rates_are_laid_over_the_blocks_that_run():
    row = ShiftableIdentity(nn.Sequential(CyclicLinear(2, 2), DropPath()) for _ in range(5))
    row.lay_drop_path(0.4)
    for depth in range(1, 6):
        row.depth.active = depth
        rates = [row[slot][1].drop_prob for slot in range(depth)]
        assert rates == pytest.approx([0.4 * i / (depth - 1) if depth > 1 else 0.0 for i in range(depth)])
        plain = export_subnet(row)
        assert [getattr(block[1], "drop_prob", 0.0) for block in plain] == pytest.approx(rates)
        assert is_plain(plain)


def test_without_shifting_drop_path_counts_the_slots_that_run():
    row = ShiftableIdentity((nn.Sequential(CyclicLinear(2, 2), DropPath()) for _ in range(4)), shift=False)
    row.lay_drop_path(0.2)
    activate_subnet(row, {"use.0": 1, "use.1": 0, "use.2": 1, "use.3": 1})
    assert [row[slot][1].drop_prob for slot in (0, 2, 3)] == pytest.approx([0.0, 0.1, 0.2])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(20000, 3))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(out), out)


def test_nested_rows_name_only_choices_that_run():
    inner = [linears(2) for _ in range(2)]
    outer = ShiftableIdentity(inner)
    space = search_space(outer)
    assert space.size == (2) + (2 * 2)
    activate_subnet(outer, {"depth": 1, "0.depth": 2})
    assert dict(active_subnet(outer)) == {"depth": 1, "0.depth": 2}


@pytest.mark.parametrize("shift", [True, False])
def test_a_foreign_checkpoint_notices_other_blocks_of_equal_shape(shift):
    row = randomize(ShiftableIdentity([nn.Linear(4, 4), nn.Linear(4, 4)], shift=shift))
    x = torch.randn(2, 4, requires_grad=True)
    if shift:
        row.depth.active = 1
    else:
        activate_subnet(row, {"use.0": 1, "use.1": 0})
    out = checkpoint(lambda z: row(z).tanh(), x, use_reentrant=False)
    if shift:
        row.depth.active = 2
    else:
        activate_subnet(row, {"use.0": 0, "use.1": 1})
    with pytest.raises(RuntimeError, match="different"):
        out.sum().backward()


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, float("nan"), True, "0.1", None])
def test_drop_path_rates_outside_0_and_1_are_refused(rate):
    with pytest.raises(ChoiceError, match="drop_prob: expected"):
        DropPath(rate)
    row = ShiftableIdentity([DropPath(0.1), DropPath(0.2)])
    with pytest.raises(ChoiceError, match="drop_prob: expected"):
        row[1].drop_prob = rate
    with pytest.raises(ChoiceError, match="drop_prob: expected"):
        row.lay_drop_path(rate)
    assert [part.drop_prob for part in row] == [0.1, 0.2]


def test_a_law_that_is_a_tensor_of_no_axis_is_refused():
    with pytest.raises(ChoiceError, match="p of Choice: expected 3 probabilities"):
        linears(3, p=torch.tensor(0.5))


def test_slots_leave_in_the_order_that_is_given():
    row = randomize(linears(4, leave=[1, 2]))
    x = torch.randn(3, 4)
    space = search_space(row)
    for active, slots in ((4, [0, 1, 2, 3]), (3, [0, 2, 3]), (2, [0, 3]), (1, [0])):
        row.depth.active = active
        expected = x
        for slot in slots:
            expected = row[slot](expected)
        assert torch.equal(row(x), expected)
        assert torch.equal(exported(row)(x), expected)
        assert row.param_count().at(space.indices(space.active())) == 20 * active
    row.zero_grad()
    row.depth.active = 3
    row(x).sum().backward()
    assert [block.weight.grad is None for block in row] == [False, True, False, False]


def test_choices_of_a_slot_live_as_long_as_it_runs():
    hidden = [Dim([1, 2], name=f"hidden{slot}") for slot in range(3)]
    row = ShiftableIdentity((nn.Sequential(CyclicLinear(2, h), CyclicLinear(h, 2)) for h in hidden), leave=[0], name="depth")
    space = search_space(row)
    assert list(space.subnet({"depth": 2}, fill="smallest")) == ["depth", "hidden1", "hidden2"]
    assert space.size == 8 + 4 + 2


@pytest.mark.parametrize("leave", [(), (0, 2), (1,)])
def test_drop_path_rises_over_the_blocks_that_run_whichever_these_are(leave):
    row = ShiftableIdentity((DropPath() for _ in range(4)), leave=leave)
    row.lay_drop_path(0.3)
    for active in row.depth.values:
        row.depth.active = active
        rates = [block.drop_prob for block in row.running()]
        assert rates == pytest.approx([0.3 * i / max(active - 1, 1) for i in range(active)])


def test_without_shifting_no_order_of_leaving_is_taken():
    with pytest.raises(ChoiceError, match="leave: without shifting every slot is free"):
        linears(3, shift=False, leave=[1])


def test_the_warning_names_the_slots_that_leave_first():
    with pytest.warns(UserWarning, match=r"slots 0, 2, 15 run in fewer"):
        linears(16, p=[0] * 12 + [0.97, 0.01, 0.01, 0.01], leave=[2, 0])


def test_the_order_of_leaving_is_part_of_a_space():
    assert "turns" not in search_space(linears(3, name="depth")).description()["depth"]
    assert search_space(linears(3, leave=[0], name="depth")).description()["depth"]["turns"] == [2, 0, 1]
