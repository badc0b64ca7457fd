import copy
import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

import vitas
from tests.clock import count_for_time, counted_seconds
from tests.contract import macs
from vitas import (
    ChoiceError,
    Dim,
    LatencyTable,
    VitasError,
    count_flops,
    create_superformer,
    export_subnet,
    latency_table,
    measure_latency,
    search_space,
)
from vitas.measure import latency, parts, runners
from vitas.nn.linear import CyclicLinear


def micro(**overrides):
    return create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=3, **overrides)


def small(**overrides):
    """A space of few configurations."""
    widths = {"embed_dim": [32, 48], "depth": range(1, 4), "qkv_dim": [32, 64], "mlp_dim": [48, 96]}
    return micro(**{**widths, **overrides})


def flags(model):
    return [part.training for part in model.modules()]


def time_by(seconds, monkeypatch):
    """Let `seconds` stand for the clock, for whole networks and for parts."""
    monkeypatch.setattr(latency, "seconds_of", seconds)


# -- measure_latency ---------------------------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time` where latency is measured: it goes on when told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, milliseconds):
        self.now += milliseconds / 1000


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(latency, "time", clock := Clock())
    return clock


class Sleeper(nn.Module):
    """Takes as many milliseconds of a clock as the next number says."""

    def __init__(self, clock, *milliseconds):
        super().__init__()
        self.clock = clock
        self.left = list(milliseconds)
        self.seen = []

    def forward(self, x, y=None):
        self.seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), x, y))
        self.clock.sleep(self.left.pop(0))


def test_latency_is_the_median_in_milliseconds_after_warm_up(clock):
    module = Sleeper(clock, 200, 200, 4, 4, 30, 4, 30, 30, 30)
    measured = measure_latency(module, torch.zeros(1), warmup=2, runs=7)
    assert module.left == []
    assert dataclasses.astuple(measured) == pytest.approx((30, 30 - 4, 4, 7))  # median, between the quartiles, fastest
    assert float(measured) == measured.median
    assert measured.busy
    busy = "the machine was busy: measure again"
    assert str(measured) == f"median 30 ms, fastest 4 ms (7 runs, quartiles 26 ms apart); {busy}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.median = 0.0


def test_latency_of_runs_known_beforehand(monkeypatch):
    seconds = [0.009, 0.001, 0.002, 0.004, 0.007]
    time_by(lambda *arguments: seconds.pop(), monkeypatch)
    measured = measure_latency(nn.Identity(), torch.zeros(1), runs=5)
    assert dataclasses.astuple(measured) == pytest.approx((4, 7 - 2, 1, 5))
    steady = vitas.Latency(median=4.0, spread=1.0, fastest=3.5, runs=5)  # a quarter of the median is still believed
    assert not steady.busy
    assert str(steady) == "median 4 ms, fastest 3.5 ms (5 runs, quartiles 1 ms apart)"


def test_tensors_are_moved_to_the_device_wherever_they_stand():
    (x, kept), more = latency.batch_arguments(((torch.zeros(1), "kept"), {"y": torch.ones(2)}), torch.device("meta"))
    assert x.is_meta
    assert kept == "kept"
    assert more["y"].is_meta


def test_latency_is_measured_in_eval_mode_without_gradients():
    module = nn.Sequential(Sleeper(Clock(), *[0] * 6), nn.Dropout())
    module[1].eval()
    measure_latency(module[0], (torch.zeros(1), "more"), warmup=0, runs=2)
    measure_latency(module[0], torch.zeros(1), warmup=0, runs=1, amp=True)
    seen = [[*modes, y] for *modes, _, y in module[0].seen]
    assert seen == [[False, False, False, "more"]] * 2 + [[False, False, True, None]]
    assert flags(module) == [True, True, False]
    module[0].left = []
    with pytest.raises(IndexError):
        measure_latency(module[0], torch.zeros(1))
    assert flags(module) == [True, True, False]
    assert torch.is_grad_enabled()


def test_the_device_is_waited_for_before_and_after_every_run(monkeypatch):
    events = []
    monkeypatch.setattr(latency, "_wait_for", lambda device: events.append(str(device)))

    class Module(nn.Module):
        def forward(self, x):
            events.append("run")

    measure_latency(Module(), torch.zeros(1), warmup=1, runs=2)
    assert events == ["run", *["cpu", "run", "cpu"] * 2]


def test_what_is_no_module_is_refused():
    with pytest.raises(vitas.VitasError, match=r"module: expected a torch\.nn\.Module, got 3"):
        measure_latency(3, torch.zeros(1))


def test_a_model_on_the_meta_device_takes_no_time():
    with torch.device("meta"):
        model = micro()
    for measure in (measure_latency, latency_table):
        with pytest.raises(VitasError, match="is on the meta device"):
            measure(model, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("inputs", [3, "images", [1], (), (1, None), None])
def test_inputs_without_tensors_are_refused(inputs):
    with pytest.raises(
        VitasError,
        match=f"inputs: expected a tensor, .* with a tensor among them, got {re.escape(repr(inputs))}",
    ):
        measure_latency(nn.Identity(), inputs)
    with pytest.raises(
        VitasError,
        match=f"inputs: expected a tensor, .* with a tensor among them, got {re.escape(repr(inputs))}",
    ):
        latency_table(micro(), inputs)


@pytest.mark.parametrize(("name", "number"), [("runs", 0), ("runs", 2.0), ("warmup", -1), ("warmup", True)])
def test_numbers_of_runs_are_checked(name, number):
    with pytest.raises(VitasError, match=rf"{name}: expected (a positive int|an int of at least 0), got {number}"):
        measure_latency(nn.Identity(), torch.zeros(1), **{name: number})


# -- latency_table: with a clock that counts, everything is exact ------------------------------------------------------


def is_whole(run):
    """Whether a whole network is run, of which the runner called "torch" makes a partial function."""
    return isinstance(run.func, vitas.plain.VisionTransformer)


@pytest.fixture
def counting(monkeypatch):
    count_for_time(monkeypatch)


class Own(nn.Module):
    """A model of a user's own: a layer that stands in two places and runs twice, one called by keyword, plain ones."""

    def __init__(self):
        super().__init__()
        self.width = Dim([4, 6, 9])
        self.stem = nn.Sequential(nn.Conv2d(2, 5, 2, 2), nn.ReLU())
        self.embed = CyclicLinear(5, self.width)
        self.mix = CyclicLinear(self.width, self.width)
        self.act = nn.GELU()
        self.again = self.mix
        self.never = nn.Bilinear(1, 1, 1)
        self.head = CyclicLinear(self.width, 3)

    def forward(self, x):
        x = self.embed(self.stem(x).flatten(2).transpose(1, 2))
        x = self.act(input=self.again(self.mix(x)))
        return self.head(x.mean(dim=1))


MODELS = {
    "deit_micro": micro,
    "drop path, no shifting": lambda: small(drop_path_rate=0.1, shift=False),
    "bilateral, private": lambda: small(sharing="bilateral", private="qk", depth=[2, 3]),
    "heads decide the width": lambda: create_superformer(
        "autoformer_tiny", img_size=32, in_chans=1, num_classes=0, depth=[2, 3], distilled=True, global_pool="token"
    ),
    "layer scale, qk norm": lambda: small(depth=2, init_values=0.1, qk_norm=True, qkv_dim=None, head_dim=8),
    "one's own": Own,
}


def batch_for(model):
    return torch.randn(1, 2, 6, 6) if isinstance(model, Own) else torch.randn(1, 1, *model.patch_embed.img_size)


@pytest.mark.parametrize("name", MODELS)
def test_a_sum_of_parts_that_leaves_nothing_out(name, counting):
    model = MODELS[name]()
    x = batch_for(model)
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0)
    space = search_space(model)
    generator = torch.Generator().manual_seed(0)
    subnets = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(10))]
    for subnet in subnets:
        expected = macs(export_subnet(model, subnet).eval(), x)
        assert round(table.latency_ms(subnet) * 1e6) == expected
        parts = table.by_module(subnet)
        assert sum(parts.values()) == pytest.approx(expected / 1e6, rel=1e-12)
        if not isinstance(model, Own):
            assert expected == count_flops(model, subnet).total
    codes = np.stack([space.encode(subnet) for subnet in subnets])
    np.testing.assert_array_equal(table.latency_ms(codes), [table.latency_ms(subnet) for subnet in subnets])


def test_equal_parts_are_measured_once(counting):
    model = micro()
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=0)
    patches, widths, heads, inner, hidden = 2, 5, 2, 3, 4
    attention, mlp = patches * widths * heads * inner, patches * widths * hidden
    norm, patch_embed, head = patches * widths, patches * widths, widths
    n = table.measured.configurations
    assert n == attention + mlp + norm + patch_embed + head
    how = f"median of 1 runs in torch, {torch.get_num_threads()} thread(s)?, {n} configurations"
    assert re.fullmatch(rf"LatencyTable of {len(table.space)} choices: {how}", repr(table))


def test_equal_parts_that_were_each_compiled_are_measured_once(counting):
    model = micro()
    x = torch.randn(1, 1, 8, 8)
    expected = latency_table(model, x, warmup=0, runs=1, calibrate=0).measured.configurations
    for block in model.blocks:  # what block.mlp.compile() does, with a function that leaves the code as it is
        block.mlp._compiled_call_impl = lambda x, mlp=block.mlp: mlp._call_impl(x)
    assert latency_table(model, x, warmup=0, runs=1, calibrate=0).measured.configurations == expected


def test_parts_that_differ_in_a_setting_only_are_measured_apart(clock):
    class Wait(nn.Module):
        def __init__(self, milliseconds):
            super().__init__()
            self.milliseconds = milliseconds

        def forward(self, x):
            clock.sleep(self.milliseconds)
            return x

    dim = Dim([2, 3])
    model = nn.Sequential(CyclicLinear(4, dim), Wait(2), CyclicLinear(dim, dim), Wait(8), Wait(2), CyclicLinear(dim, 2))
    table = latency_table(model, torch.randn(1, 4), warmup=0, runs=3, calibrate=0)
    times = table.by_module(search_space(model).largest())
    assert times == pytest.approx({"1": 2, "3": 8, "4": 2})


class Raw(nn.Module):
    """Multiplies by a matrix of its own, whose number of rows stands nowhere else, and by its transpose."""

    def __init__(self, rows, kind=nn.Parameter):
        super().__init__()
        self.matrix = kind(torch.randn(rows, 4))

    def forward(self, x):
        return x @ self.matrix.T @ self.matrix


class Calls(nn.Module):
    """Calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def once(x):
    return x @ x.mT @ x


def twice(x):
    return once(once(x))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Raw(2), Raw(5)),
        (Raw(2, nn.Buffer), Raw(5, nn.Buffer)),
        (Raw(2, torch.Tensor), Raw(5, torch.Tensor)),
        (nn.Sequential(Raw(2), nn.ReLU()), nn.Sequential(Raw(5), nn.ReLU())),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))),
        (Calls(once), Calls(twice)),
    ],
    ids=["weights", "buffers", "tensors", "children", "children's children", "functions"],
)
def test_parts_that_do_not_equal_are_measured_apart(one, other, counting):
    width = Dim([2, 3])
    model = nn.Sequential(one, other, CyclicLinear(4, width), CyclicLinear(width, 2))
    x = torch.randn(2, 3, 4)
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0)
    assert macs(one, x) != macs(other, x)
    for subnet in (table.space.smallest(), table.space.largest()):
        assert round(table.latency_ms(subnet) * 1e6) == macs(export_subnet(model, subnet), x)


def test_equal_parts_with_unequal_inputs_are_measured_apart(counting):
    one, other = (nn.Conv1d(3, 3, 3, padding=1) for _ in range(2))
    model = nn.Sequential(one, nn.MaxPool1d(2), other, CyclicLinear(4, Dim([2, 3])))
    x = torch.randn(2, 3, 8)
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0)
    times = table.by_module(table.space.smallest())
    assert [round(times[path] * 1e6) for path in ("0", "2")] == [macs(one, x), macs(other, x[..., :4])]
    assert times["0"] == 2 * times["2"]


@pytest.mark.parametrize("amp", [False, True])
def test_parts_are_timed_as_they_run_in_use(amp):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), x.dtype))
            return x

    model = nn.Sequential(CyclicLinear(3, Dim([1, 2])), Spy())
    latency_table(model, torch.randn(1, 3), warmup=2, runs=3, calibrate=1, amp=amp)
    look, part, whole = 2, 2 * (2 + 3), 3 * (2 + 3)  # for each width, then the smallest, the largest and a drawn one
    assert seen == [(False, False, amp, torch.bfloat16 if amp else torch.float32)] * (look + part + whole)


def test_indices_stay_indices():
    """Random floats may stand for an image, but nothing random for the rows of a table."""
    model = nn.Sequential(nn.Embedding(1, 3), CyclicLinear(3, Dim([1, 2])))
    assert (
        latency_table(model, torch.zeros(2, dtype=torch.int64), warmup=0, runs=1, calibrate=0).measured.configurations
        == 1 + 2
    )


def test_a_large_part_is_taken_apart(counting):
    model = small()
    x = torch.randn(1, 1, 8, 8)
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0, most=8)
    assert "blocks.0.mlp" in table.by_module(table.space.largest())
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0, most=7)  # attention has 16 configurations, the MLP 8
    for subnet in (table.space.smallest(), table.space.largest()):
        counts = count_flops(model, subnet)
        assert round(table.latency_ms(subnet) * 1e6) == counts.total - counts.by_operator["matmul"]
        assert "blocks.0.mlp.fc1" in table.by_module(subnet)


def test_a_line_is_fitted_to_whole_subnets(monkeypatch):
    """Parts read 1 ns a multiply-add; whole networks take 1.5 ns and 7 us on top."""

    def seconds(run, device):
        return 1.5 * counted_seconds(run, device) + 7e-6 if is_whole(run) else counted_seconds(run, device)

    time_by(seconds, monkeypatch)
    model = small(depth=2)
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=3)
    for subnet in (table.space.smallest(), table.space.largest(), table.space.sample()):
        assert table.latency_ms(subnet) * 1e6 == pytest.approx(1.5 * count_flops(model, subnet).total + 7000, rel=1e-4)
        assert table.by_module(subnet)[""] * 1e6 == pytest.approx(7000, rel=1e-2)


@pytest.mark.parametrize("calibrate", [0, 2])
@pytest.mark.parametrize(("statistic", "factor"), [("median", 2), ("fastest", 1)])
def test_parts_and_whole_subnets_are_told_by_the_same_statistic(statistic, factor, calibrate, monkeypatch):
    slower = itertools.cycle([3, 1, 2])
    time_by(lambda *arguments: next(slower) * counted_seconds(*arguments), monkeypatch)
    model = small(depth=2)
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=3, calibrate=calibrate, statistic=statistic)
    assert f": {statistic} of 3 runs in torch" in repr(table)
    assert table.measured.busy  # a clock that goes at 1 to 3 times its pace is no steady one
    assert repr(table).endswith(f"the machine was busy in {table.measured.busy} of them")
    for subnet in (table.space.smallest(), table.space.largest()):
        assert table.latency_ms(subnet) * 1e6 == pytest.approx(factor * count_flops(model, subnet).total, rel=1e-4)


@pytest.mark.parametrize(
    ("time_of", "is_line"),
    [(lambda n: 1000 * n**0.5, True), (lambda n: n**2, False), (lambda n: 1e7 - 9 * n, False)],
    ids=["concave", "convex", "falling"],
)
def test_the_line_has_the_least_relative_errors(time_of, is_line, monkeypatch):
    """Over the smallest subnet, the largest and those drawn; one through nought where it would fall or start below."""
    wholes = {}

    def seconds(run, device):
        counted = counted_seconds(run, device)
        if not is_whole(run):
            return counted
        number = round(counted * 1e9)
        wholes[number] = time_of(number)
        return wholes[number] / 1e9

    time_by(seconds, monkeypatch)
    model = small()
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=5)
    space = table.space
    assert {count_flops(model, subnet).total for subnet in (space.smallest(), space.largest())} <= set(wholes)
    assert len(wholes) == 2 + 5
    counts, times = np.array([*wholes], dtype=float), np.array([*wholes.values()], dtype=float)
    if is_line:
        factor, offset = np.polyfit(counts, times, 1, w=1 / times)
    else:
        ratios = counts / times
        factor, offset = ratios.sum() / (ratios**2).sum(), 0.0
    for subnet in (space.smallest(), space.largest()):
        expected = offset + factor * count_flops(model, subnet).total
        assert table.latency_ms(subnet) * 1e6 == pytest.approx(expected, rel=1e-3)


def test_a_lone_layer_and_the_offset_share_a_place(monkeypatch):
    calls = itertools.count()

    def seconds(*arguments):
        return counted_seconds(*arguments) + (7e-6 if next(calls) >= 2 else 0)  # whole networks come last

    time_by(seconds, monkeypatch)
    table = latency_table(CyclicLinear(3, Dim([10, 2000])), torch.zeros(1, 3), warmup=0, runs=1, calibrate=1)
    for subnet in (table.space.smallest(), table.space.largest()):
        (width,) = subnet.values()
        assert table.by_module(subnet) == pytest.approx({"": (7000 + 3 * width) / 1e6}, rel=1e-3)
        assert table.latency_ms(subnet) == pytest.approx(table.by_module(subnet)[""], rel=1e-12)


def test_a_negative_offset_is_not_believed(monkeypatch):
    def seconds(run, device):
        return counted_seconds(run, device) - (1e-5 if is_whole(run) else 0)

    time_by(seconds, monkeypatch)
    model = small(depth=2)
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=3)
    assert "" not in table.by_module(table.space.smallest())
    assert 0 < table.latency_ms(table.space.smallest()) * 1e6 < count_flops(model, table.space.smallest()).total


def test_the_model_comes_back_as_it_was_also_after_an_error(counting, monkeypatch):
    model = small(sharing="bilateral", depth=2)
    model.blocks[1].eval()
    space = search_space(model)
    space.activate(space.smallest(), side="right")
    state, before = space.state(), flags(model)
    weights = copy.deepcopy(model.state_dict())
    images, random = torch.randn(1, 1, 8, 8), torch.get_rng_state()
    latency_table(model, images, warmup=0, runs=1, calibrate=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert space.state() == state
    assert flags(model) == before
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model.modules())
    monkeypatch.setattr(parts, "exported", lambda module: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        latency_table(model, torch.randn(1, 1, 8, 8))
    assert space.state() == state
    assert flags(model) == before


def test_works_through_wrappers(counting):
    model = small(depth=2)
    x = torch.randn(1, 1, 8, 8)
    wrapped = torch.optim.swa_utils.AveragedModel(model)
    table = latency_table(wrapped, x, warmup=0, runs=1, calibrate=0)
    subnet = table.space.largest()
    assert round(table.latency_ms(subnet) * 1e6) == count_flops(model, subnet).total


def test_what_cannot_be_tabulated_is_refused():
    with pytest.raises(ChoiceError, match="has no choices"):
        latency_table(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(VitasError, match="calibrate: expected an int of at least 0, got -1"):
        latency_table(micro(), torch.zeros(1, 1, 8, 8), calibrate=-1)
    table = latency_table(CyclicLinear(3, Dim([1, 2])), torch.zeros(1, 3), warmup=0, runs=1, calibrate=0)
    with pytest.raises(ChoiceError, match="unknown choice"):
        table.latency_ms({"depth": 3})
    with pytest.raises(ChoiceError, match="codes: expected"):
        table.latency_ms([[0.5]])


# -- runners -----------------------------------------------------------------------------------------------------------


class Recorder:
    """A runner that notes what it is given, and whose functions take no time."""

    def __init__(self):
        self.given = []

    def __call__(self, module, inputs):
        self.given.append((module, inputs))
        return lambda: None


def test_a_runner_of_ones_own_gets_exported_parts_and_their_tensors():
    model = Own()
    runner = Recorder()
    table = latency_table(model, batch_for(model), warmup=0, runs=1, calibrate=1, runner=runner)
    assert "runs in <tests" in repr(table)
    for module, inputs in runner.given:
        assert not any(type(part).__module__.startswith("vitas.nn") for part in module.modules())
        assert not module.training
        assert all(isinstance(tensor, torch.Tensor) for tensor in inputs)
        assert isinstance(module(*inputs), torch.Tensor)
    assert [type(module) for module, _ in runner.given[-3:]] == [Own] * 3  # the smallest, the largest, a drawn one

    def outlined(module, inputs):
        return lambda: None

    table = latency_table(model, batch_for(model), warmup=0, runs=1, calibrate=0, runner=outlined)
    assert "outlined, " in repr(table)
    measured = measure_latency(nn.Identity(), torch.zeros(2), runs=3, runner=outlined)
    assert measured.runs == 3


def test_a_table_is_read_again_whatever_its_runner_is_called():
    class Coloured(Recorder):
        def __repr__(self):
            return "\x1b[31m" + "x" * 500

    def long(module, inputs):
        return lambda: None

    long.__qualname__ = "long" * 100
    for runner in (Coloured(), long):
        model = small()
        table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=0, runner=runner)
        assert table.measured.runner.isprintable()
        assert LatencyTable.from_json(table.to_json(), model).measured == table.measured


def test_configurations_that_come_to_one_shape_are_timed_once():
    """Two MLPs whose hidden widths have one value in common, and an input that both get."""
    one, other = Dim([2, 3], name="one"), Dim([3, 5], name="other")
    model = nn.Sequential(
        nn.Sequential(CyclicLinear(4, one), CyclicLinear(one, 4)),
        nn.Sequential(CyclicLinear(4, other), CyclicLinear(other, 4)),
    )
    runner = Recorder()
    table = latency_table(model, torch.randn(1, 4), warmup=0, runs=1, calibrate=0, runner=runner)
    assert table.measured.configurations == len(runner.given) == 2 * 3  # widths 2, 3 and 5, in and out


def test_what_is_not_a_tensor_is_bound_to_the_module():
    class Scaled(nn.Module):
        def forward(self, x, by, *, plus):
            return x * by + plus["tensor"]

    runner = Recorder()
    run = runners.prepared(runner, Scaled(), (torch.ones(2), 3), {"plus": {"tensor": torch.ones(2)}})
    assert run() is None
    ((module, inputs),) = runner.given
    assert torch.equal(module(*inputs), torch.full((2,), 4.0))
    assert torch.equal(module(torch.zeros(2), torch.zeros(2)), torch.zeros(2))


def test_torch_compile_runs_each_part_compiled_for_its_shapes(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic: seen.append((module, dynamic)) or module)
    layer = nn.Linear(3, 2)
    run = runners.compiled(layer, (torch.ones(1, 3),))
    assert torch.equal(run(), layer(torch.ones(1, 3)))
    assert seen == [(layer, False)]


@pytest.mark.extras
def test_onnx_runtime_computes_what_the_parts_compute():
    pytest.importorskip("onnxruntime")
    model = small(depth=2, embed_dim=32, qkv_dim=32, mlp_dim=[48, 96], patch_size=4)
    x = torch.randn(2, 1, 8, 8)
    ran = []

    def checked(module, inputs):
        run = runners.in_onnxruntime(module, inputs)
        torch.testing.assert_close(torch.from_numpy(run()[0]), module(*inputs), rtol=1e-4, atol=1e-5)
        ran.append(module)
        return run

    latency_table(model, x, warmup=0, runs=1, calibrate=1, runner=checked)
    assert len(ran) > 3
    assert measure_latency(export_subnet(model), x, runs=1, runner="onnxruntime").median > 0


def test_other_runners_and_statistics_are_refused():
    x = torch.zeros(1, 3)
    model = CyclicLinear(3, Dim([1, 2]))
    with pytest.raises(VitasError, match="nearest: onnxruntime"):
        latency_table(model, x, runner="onnx-runtime")
    with pytest.raises(VitasError, match=r"runner: expected one of torch, torch\.compile, onnxruntime, a function"):
        measure_latency(nn.Identity(), x, runner=3)
    with pytest.raises(VitasError, match="statistic: expected one of median, fastest, got 'mean'"):
        latency_table(model, x, statistic="mean")
    with pytest.raises(VitasError, match="runner: expected it to return a function without arguments, got Tensor"):
        measure_latency(nn.Identity(), x, runner=lambda module, inputs: module(*inputs))


# -- a table that travels ----------------------------------------------------------------------------------------------


def test_a_table_travels_as_json_to_the_same_model_made_again(counting):
    model = small()
    table = latency_table(model, torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=0)
    again = small()
    read = LatencyTable.from_json(table.to_json(), again)
    assert repr(read) == repr(table)
    space = search_space(again)
    for subnet in (space.smallest(), space.largest(), space.sample()):
        assert read.latency_ms(subnet) == table.latency_ms(subnet)
        assert read.by_module(subnet) == table.by_module(subnet)
        for it in (read, table):
            cost = it.nanoseconds(space)
            assert cost.at(space.indices(subnet)) == round(table.latency_ms(subnet) * 1e6)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"choices": {}, "measured": {}, "nanoseconds": []}', "[" * 10**5])
def test_another_text_is_no_table(text):
    with pytest.raises(vitas.errors.FileError, match="latency table: expected what to_json returned"):
        LatencyTable.from_json(text, small())


def test_the_table_of_another_model_is_refused(counting):
    table = latency_table(small(), torch.randn(1, 1, 8, 8), warmup=0, runs=1, calibrate=0)
    other = small(mlp_dim=[48, 64])
    for use in (lambda: table.nanoseconds(search_space(other)), lambda: LatencyTable.from_json(table.to_json(), other)):
        with pytest.raises(VitasError, match="of another model: its choices differ"):
            use()


def test_serves_as_a_measured_value_of_a_search():
    model = small(depth=2)
    x = torch.randn(4, 1, 8, 8)
    table = latency_table(model, x, warmup=0, runs=1, calibrate=0)
    score = vitas.accuracy([(x, torch.tensor([0, 1, 2, 0]))])

    def evaluate(model):
        return {"accuracy": score(model), "latency_ms": table.latency_ms(vitas.active_subnet(model))}

    with vitas.use_subnet(model, table.space.smallest()):
        found = evaluate(model)
    assert found["accuracy"] == score(export_subnet(model, table.space.smallest()))
    assert found["latency_ms"] > 0
