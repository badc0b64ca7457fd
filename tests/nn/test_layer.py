"""What follows from the axes that a layer states, and how a mistake in a layer of one's own is reported."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import Contract, randomize
from vitas import Choice, Dim, VitasError, cost_model, count_flops, count_params, export_subnet, plain, search_space
from vitas.choice import take
from vitas.cost import Cost, cost_of, params_of
from vitas.errors import ExportError, ShapeError
from vitas.nn import CyclicLinear, Elastic, ElasticPatchEmbed
from vitas.nn.layer import exported, filled
from vitas.nn.stacked import StackedLinear


class RmsNorm(Elastic, nn.RMSNorm):
    """A layer of a user's own."""

    def __init__(self, dim):
        super().__init__(dim.largest, 1e-6)
        self.dim = dim

    def axes(self):
        return {"weight": (self.dim,)}

    def forward(self, x):
        return F.rms_norm(x, (self.dim.active,), **self.active_weights(), eps=self.eps)

    def cost(self, tokens):
        return Cost()


class GroupNorm(Elastic, nn.GroupNorm):
    """One that narrows a class whose sizes the library does not know, with a buffer and an attribute of its own."""

    holds = ("note",)

    def __init__(self, dim):
        super().__init__(1, dim.largest)
        self.dim, self.note = dim, object()
        self.register_buffer("shift", torch.linspace(0, 1, dim.largest))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def axes(self):
        return {"weight": (self.dim,), "bias": (self.dim,), "shift": (self.dim,), "scale": ()}

    def plain_sizes(self):
        return {"num_channels": self.dim.active}

    def forward(self, x):
        weights = self.active_weights()
        return F.group_norm(x, 1, weights["weight"], weights["bias"], self.eps)

    def cost(self, tokens):
        return Cost()


class ByHand(nn.RMSNorm):
    """The same as RmsNorm, without the base: it states all that follows from axes itself."""

    def __init__(self, dim):
        super().__init__(dim.largest, 1e-6)
        self.dim = dim

    def active_weights(self):
        return take(weight=(self.weight, self.dim))

    def forward(self, x):
        return F.rms_norm(x, (self.dim.active,), **self.active_weights(), eps=self.eps)

    def cost(self, tokens):
        return Cost()

    def param_count(self):
        return Cost(self.dim)

    def export(self):
        return filled(self, nn.RMSNorm(self.dim.active, self.eps, device="meta"), self.active_weights())

    def extra_repr(self):
        return self.dim.brief()


class OfAChannelCount(Contract):
    plain_leaves = (nn.RMSNorm, nn.GroupNorm)
    kind: type[nn.Module]

    def build(self, sharing):
        dim = Dim([1, 2, 3, 4], sharing=sharing)
        return self.kind(dim), [dim]

    def inputs(self, layer):
        return torch.randn(2, 5, layer.dim.active)

    def reference(self, layer, x):
        return x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight[layer.dim.channels()]


class TestRmsNorm(OfAChannelCount):
    kind = RmsNorm


class TestByHand(OfAChannelCount):
    kind = ByHand


class TestGroupNorm(OfAChannelCount):
    kind = GroupNorm

    def inputs(self, layer):
        return torch.randn(2, layer.dim.active, 3)

    def reference(self, layer, x):
        z = (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), keepdim=True, correction=0) + layer.eps).sqrt()
        used = layer.dim.channels()
        return z * layer.weight[used, None] + layer.bias[used, None]


def test_an_export_has_the_buffers_and_attributes_of_the_narrowed_class():
    layer = GroupNorm(Dim([2, 4], sharing="ordinal"))
    layer.dim.active = 2
    made = exported(layer)
    assert type(made) is nn.GroupNorm
    assert vars(made).keys() == vars(nn.GroupNorm(1, 4)).keys()
    assert torch.equal(made.shift, layer.shift[:2])
    assert list(made.state_dict()) == ["weight", "bias", "shift"] == list(layer.state_dict())
    assert made.num_channels == 2


@pytest.mark.parametrize(
    ("layer", "alike"),
    [
        (lambda: CyclicLinear(Dim([3, 6]), Dim([2, 4])), lambda: nn.Linear(3, 2)),
        (lambda: CyclicLinear(Dim([3, 6]), 2, bias=False), lambda: nn.Linear(3, 2, bias=False)),
        (lambda: StackedLinear(Dim([3, 6]), Dim([2, 4]), 3), lambda: nn.Linear(3, 6)),
        (lambda: RmsNorm(Dim([2, 4])), lambda: nn.RMSNorm(2, 1e-6)),
    ],
)
def test_an_export_has_the_attributes_that_torchs_constructor_gives(layer, alike):
    layer, alike = layer(), alike()
    for choice in search_space(layer).choices.values():
        choice.active = choice.smallest
    made = exported(layer)
    assert type(made) is type(alike)
    settings = [{k: v for k, v in vars(one).items() if not k.startswith("_")} for one in (made, alike)]
    assert settings[0] == settings[1]
    assert repr(made) == repr(alike)
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in alike.state_dict().items()}


def test_settings_that_were_changed_later_are_those_of_the_export():
    layer = RmsNorm(Dim([2, 4]))
    layer.eps = 0.5
    assert exported(layer).eps == 0.5


# -- mistakes ----------------------------------------------------------------------------------------------------------


def with_axes(axes):
    mistaken = type("RmsNorm", (RmsNorm,), {"axes": lambda self: axes(self.dim)})
    return mistaken(Dim([2, 4], name="width"))


@pytest.mark.parametrize("use", [count_params, exported, lambda layer: layer(torch.randn(1, 4))])
@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (lambda dim: {"gain": (dim,)}, VitasError, r"RmsNorm.axes\(\): there is no weight 'gain'; the layer holds weight"),
        (lambda dim: {"eps": (dim,)}, VitasError, r"RmsNorm.axes\(\): there is no weight 'eps'"),
        (
            lambda dim: {"weight": (Dim([2, 3], name="other"),)},
            ShapeError,
            r"RmsNorm.axes\(\): axis 0 of weight: .*3 .* other",
        ),
        (lambda dim: {"weight": (dim, dim)}, ShapeError, r"RmsNorm.axes\(\): axis 1 of weight: expected at most 1 axes"),
        (lambda dim: {"weight": (4,)}, VitasError, r"RmsNorm.axes\(\): axis 0 of weight: expected a Dim, or None .*, got 4"),
        (lambda dim: {"weight": dim}, VitasError, r"RmsNorm.axes\(\): expected for weight a tuple .*, got Dim"),
    ],
)
def test_axes_that_are_not_those_of_the_weights_are_refused_with_class_and_axis(axes, error, message, use):
    with pytest.raises(error, match=message):
        use(with_axes(axes))


def test_a_weight_that_axes_leave_out_is_named():
    for use in (count_params, exported):
        with pytest.raises(VitasError, match=r"RmsNorm.axes\(\) leaves out weight"):
            use(with_axes(lambda dim: {}))


def failing(slip):
    class Failing(RmsNorm):
        def cost(self, tokens=None):
            return slip()

    return Failing(Dim([2, 4]))


class Whole(nn.Module):
    """A model of a user's own around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def cost(self):
        return cost_of(self.layer, Cost(3))


def test_an_exception_inside_cost_comes_through_unchanged():
    model = Whole(failing(lambda: len(3)))
    for use in (count_flops, cost_model, lambda model: search_space(model).costs()):
        with pytest.raises(TypeError, match=r"^object of type 'int' has no len\(\)$"):
            use(model)
    text = repr(search_space(model))  # printing does not fail, and says it
    assert "no cost: TypeError: object of type 'int' has no len()" in text
    with pytest.raises(ZeroDivisionError):
        count_flops(Whole(failing(lambda: 1 / 0)))


@pytest.mark.parametrize("count", [3, None, 2.5])
def test_a_cost_of_another_type_is_refused_with_the_class(count):
    with pytest.raises(VitasError, match=r"Failing.cost\(\) does not return a vitas.cost.Cost, got"):
        count_flops(Whole(failing(lambda: count)))
    model = nn.Identity()
    model.cost = lambda: count
    with pytest.raises(VitasError, match=r"Identity.cost\(\) does not return a vitas.cost.Cost, got"):
        count_flops(model)
    model.param_count = lambda: count
    with pytest.raises(VitasError, match=r"Identity.param_count\(\) does not return a vitas.cost.Cost, got"):
        params_of(model)


def test_a_layer_with_weights_has_to_state_its_cost():
    class Silent(Elastic, nn.RMSNorm):
        def axes(self):
            return {"weight": (None,)}

    with pytest.raises(VitasError, match=r"Silent states no cost: give it a method cost\(tokens\)"):
        cost_of(Silent(3), Cost(1))


def test_a_layer_alone_states_no_cost_for_one_image():
    layer = CyclicLinear(3, Dim([2, 4]))
    assert search_space(layer).costs() is None
    assert "cost" not in repr(search_space(layer))
    with pytest.raises(VitasError, match=r"CyclicLinear states no cost for one image, only for a number of tokens"):
        count_flops(layer)
    assert count_flops(ElasticPatchEmbed(8, 4, 2, Dim([3, 5]))).total == 4 * 2 * 16 * 5  # it knows its image


def test_a_layer_that_narrows_no_class_needs_an_export():
    class Alone(Elastic):
        pass

    with pytest.raises(ExportError, match="Alone narrows no class"):
        exported(Alone())


def test_a_layer_without_weights_is_what_its_children_are():
    class Gated(Elastic, plain.Mlp):
        """A container whose forward is its own: no axes, no cost."""

        def forward(self, x):
            return self.fc2(self.fc1(x))

    hidden = Dim([2, 4])
    model = randomize(Gated(CyclicLinear(3, hidden), CyclicLinear(hidden, 3), nn.Identity()))
    assert cost_of(model, Cost(5)).active() == 5 * (3 * 4 + 4 * 3)
    hidden.active = 2
    made = export_subnet(model, verify=torch.randn(2, 3))
    assert type(made) is plain.Mlp
    assert count_params(model) == sum(parameter.numel() for parameter in made.parameters()) == 3 * 2 + 2 + 2 * 3 + 3


def test_a_choice_that_only_regroups_is_none_of_the_axes():
    from vitas.nn import ElasticAttention

    layer = ElasticAttention(8, Choice([1, 2], name="heads"), qkv_dim=Dim([4, 8]))
    assert layer.axes() == {} == layer.active_weights()
    assert exported(layer).num_heads == 2


# -- what others put on a layer ----------------------------------------------------------------------------------------


def test_what_lies_on_a_layer_stays_behind():
    """Such as accelerate's bound method, which holds a searchable layer, a cached activation, a lock."""
    layer = CyclicLinear(Dim([2, 4]), 3)
    layer._old_forward, layer.cache, layer.lock = layer.forward, torch.ones(2, requires_grad=True) * 2, threading.Lock()
    layer.note = {"from": ["here"]}
    plain = exported(layer)
    assert not {"_old_forward", "cache", "lock"} & vars(plain).keys()
    assert plain.note == {"from": ["here"]}
    x = torch.randn(2, 4)
    assert torch.equal(plain(x), layer(x))


def test_a_forward_of_its_own_is_refused():
    layer = CyclicLinear(Dim([2, 4]), 3)
    layer.forward = lambda x: x
    with pytest.raises(ExportError, match=r"a CyclicLinear has a forward of its own, .* take it off"):
        exported(layer)


def test_a_module_with_an_export_alone_is_refused():
    class Box(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = CyclicLinear(4, Dim([2, 4]))

        def export(self):
            return nn.Sequential(exported(self.fc))

    with pytest.raises(ExportError, match=r"Box has an export\(\) but is not an elastic layer: put vitas.nn.Elastic before"):
        exported(Box())


def test_a_parameter_whose_name_begins_like_another_is_not_overlooked():
    class Shifted(Elastic, nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.dim = Dim([2, 4])
            self.weight_shift = nn.Parameter(torch.ones(4))

        def axes(self):
            return {"weight": (self.dim, None), "bias": (self.dim,)}

    with pytest.raises(VitasError, match=r"Shifted.axes\(\) leaves out weight_shift: name every parameter"):
        exported(Shifted())


def test_an_unnamed_buffer_stays_behind():
    layer = CyclicLinear(Dim([2, 4]), 3)
    layer.register_buffer("seen", torch.zeros(1))
    assert "seen" not in exported(layer).state_dict()
    assert count_params(layer) == 4 * 3 + 3


def test_a_class_whose_sizes_are_not_known_has_to_tell_them():
    class Batch(Elastic, nn.BatchNorm1d):
        def __init__(self):
            super().__init__(4)
            self.dim = Dim([2, 4])

        def axes(self):
            return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.dim,))

    with pytest.raises(ExportError, match=r"Batch: give it plain_sizes\(\)"):
        exported(Batch())
