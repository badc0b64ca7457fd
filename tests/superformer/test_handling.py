"""What people and timm's scripts do to a model: another classifier, image size, layer-wise learning rates."""

import copy

import pytest
import torch
from torch import nn

from tests.contract import macs, passed_on, randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import (
    ChoiceError,
    SubnetSampler,
    VitasError,
    activate_subnet,
    cost_model,
    count_flops,
    count_params,
    create_superformer,
    export_subnet,
    load_subnet,
    plain,
    save_subnet,
    search_space,
)
from vitas.errors import ShapeError
from vitas.nn import CyclicLinear
from vitas.superformer.deit import DeiTSuperformer

BUILD = {"deit": small, "distilled": lambda: small(distilled=True), "twins": small_twins}


def small_of(size):
    """The space of `small` for images of another size."""
    space = {"patch_size": [2, 4], "embed_dim": [4, 6, 8], "depth": range(1, 4), "num_heads": [1, 2], "qkv_dim": [4, 6]}
    return DeiTSuperformer(size, mlp_dim=[3, 6, 8], private="qk", num_classes=5, in_chans=2, **space)


def built(kind):
    model = randomize(BUILD[kind]().double()).eval()
    x = torch.randn(2, *model.image_shape(), dtype=torch.float64)
    return model, x


def check_subnets(model, x, folder=None):
    """Outputs, exports, counts and files of some subnets agree."""
    space = search_space(model)
    costs = cost_model(model)
    for subnet in (space.smallest(), space.sample(torch.Generator().manual_seed(1)), space.largest()):
        activate_subnet(model, subnet)
        export = export_subnet(model, verify=x)
        assert count_flops(model, subnet).total == costs.flops(subnet) == macs(export, x[:1])
        assert count_params(model, subnet) == costs.params(subnet) == sum(p.numel() for p in export.parameters())
        assert model.num_classes == export.num_classes
    if folder is not None:
        save_subnet(export, folder / "net")
        assert torch.equal(load_subnet(folder / "net")(x), export(x))
        twin = passed_on(model, randomize(copy.deepcopy(model)), folder)
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("classes", [7, 0])
@pytest.mark.parametrize("kind", list(BUILD))
def test_a_new_classifier_is_searchable(kind, classes, tmp_path):
    model, x = built(kind)
    assert model.num_classes == 5
    activate_subnet(model, search_space(model).smallest())
    model.reset_classifier(classes)
    assert model.num_classes == classes
    assert search_space(model).active() == search_space(model).smallest()
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        assert isinstance(head, CyclicLinear if classes else nn.Identity)
        assert not head.training
        assert all(parameter.dtype == torch.float64 and parameter.requires_grad for parameter in head.parameters())
        assert not classes or (head.weight.shape[0] == classes and head.weight.std() > 0)
    assert model(x).shape == (2, classes or model.last_width().active)
    check_subnets(model, x, tmp_path)
    if classes:
        model(x).sum().backward()
        assert all(parameter.grad is not None for parameter in model.head.parameters())


@pytest.mark.parametrize("kind", list(BUILD))
def test_an_assigned_classifier_is_searched_like_the_one_before_it(kind, tmp_path):
    """What a user writes: `model.head = nn.Linear(96, 5)`."""
    model, x = built(kind)
    layers = [nn.Linear(model.head.in_features, 3).double() for _ in model.get_classifier()] if kind == "distilled" else []
    model.head = head = layers[0] if layers else nn.Linear(model.head.in_features, 3).double()
    if layers:
        model.head_dist = layers[1]
    assert model.head is head  # an optimiser that has its parameters goes on
    assert model.num_classes == 3
    check_subnets(model, x, tmp_path)


@pytest.mark.parametrize("kind", list(BUILD))
def test_assigned_identities_and_parts_of_vitas_are_taken(kind):
    model, x = built(kind)
    width = model.last_width()
    for name in ("head", "head_dist") if kind == "distilled" else ("head",):
        setattr(model, name, nn.Sequential(nn.Dropout(0.5), CyclicLinear(width, 4).double().eval()).eval())
    subnet = search_space(model).smallest()
    activate_subnet(model, subnet)
    export = export_subnet(model, verify=x)
    assert count_flops(model, subnet).total == macs(export, x[:1])
    for name in ("head", "head_dist") if kind == "distilled" else ("head",):
        setattr(model, name, nn.Identity())
    check_subnets(model, x)


def test_an_assigned_norm_follows_too():
    model, x = built("deit")
    model.norm = randomize(nn.LayerNorm(8).double())
    check_subnets(model, x)


@pytest.mark.parametrize("kind", list(BUILD))
def test_an_assigned_classifier_that_could_not_follow_is_refused_at_once(kind):
    model, x = built(kind)
    before, old = model(x), model.head
    widest = old.in_features
    for name, layer in (("head", nn.Linear(99, 5)), ("norm", nn.LayerNorm(3))):
        with pytest.raises(ShapeError, match=rf"{name}: expected {widest} channels, as .*embed_dim has, got L"):
            setattr(model, name, layer)
    with pytest.raises(VitasError, match=r"head: a Sequential cannot follow .*embed_dim; expected nn.Linear"):
        model.head = nn.Sequential(nn.Linear(widest, 5))
    assert model.head is old
    assert torch.equal(model(x), before)


def test_where_the_width_is_fixed_any_classifier_will_do():
    model = DeiTSuperformer(8, 4, 2, 5, embed_dim=8, num_heads=[1, 2], depth=2).eval()
    model.head = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))
    x = torch.randn(2, 2, 8, 8)
    assert export_subnet(model, search_space(model).smallest(), verify=x)(x).shape == (2, 3)


@pytest.mark.parametrize("kind", ["deit", "twins"])
def test_the_pooling_is_changed_with_the_classifier(kind):
    model, x = built(kind)
    model.reset_classifier(4, "avg")
    assert model.global_pool == "avg"
    check_subnets(model, x)
    if kind == "twins":
        model.reset_classifier(4, "")
        assert model(x).ndim == 3
        check_subnets(model, x)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("deit", (-1,), "num_classes: expected an int of at least 0, got -1"),
        ("twins", (2.5,), "num_classes: expected an int of at least 0, got 2.5"),
        ("deit", (3, "mean"), "global_pool: expected one of 'token', 'avg', got 'mean'"),
        ("distilled", (3, "avg"), "global_pool: expected one of 'token', got 'avg'"),
        ("twins", (3, "token"), "global_pool: expected one of 'avg', '', got 'token'"),
    ],
)
def test_no_classifier_is_made_of_other_words(kind, arguments, message):
    model, x = built(kind)
    before = model(x)
    with pytest.raises(ChoiceError, match=message):
        model.reset_classifier(*arguments)
    with pytest.raises(ValueError, match=message):
        export_subnet(model).reset_classifier(*arguments)
    assert torch.equal(model(x), before)


# -- image size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"patch_size": 4}, {"distilled": True}])
@pytest.mark.parametrize("size", [16, (12, 8)])
def test_positions_follow_the_image_size(options, size, tmp_path):
    model = randomize(small(**options).double()).eval()
    before = copy.deepcopy(model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("pos_embed"))
    model.set_input_size(size)
    height, width = (size, size) if isinstance(size, int) else size
    assert model.image_shape() == (2, height, width)
    for name, table in model.state_dict().items():
        if not name.startswith("pos_embed"):
            assert torch.equal(table, before[name])
            continue
        patch = int(name.rpartition(".")[2]) if "." in name else 4
        grids = (8 // patch, 8 // patch), (height // patch, width // patch)
        assert torch.equal(table, plain.resample_positions(before[name], *grids, model.num_prefix_tokens))
        assert not model.get_parameter(name).requires_grad
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    check_subnets(model, x, tmp_path)
    with pytest.raises(ShapeError, match=rf"expected shape \(batch, 2, {height}, {width}\), got \(2, 2, 8, 8\)"):
        model(x.new_zeros(2, 2, 8, 8))


def test_a_file_and_the_method_resample_alike(tmp_path):
    model = randomize(small().double()).eval()
    larger = passed_on(model, small_of(16).double().eval(), tmp_path)
    model.set_input_size(16)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), larger.state_dict().values(), strict=True))
    save_subnet(export_subnet(small().double()), tmp_path / "net")
    one, other = load_subnet(tmp_path / "net"), load_subnet(tmp_path / "net", img_size=(16, 12))
    one.set_input_size((16, 12))
    assert torch.equal(one.pos_embed, other.pos_embed)
    assert one.patch_embed.img_size == other.patch_embed.img_size == (16, 12)


def test_counts_of_twins_follow_the_image_size():
    model, x = built("twins")
    larger = torch.randn(2, x.shape[1], 2 * x.shape[2], x.shape[3] + 8, dtype=torch.float64)
    model.set_input_size(tuple(larger.shape[2:]))
    check_subnets(model, larger)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("deit", 10, "patch_size: 4 does not divide an image of 10 x 10 pixels"),
        ("deit", 0, "img_size: expected a positive int or"),
        ("deit", (8, 8, 8), "img_size: expected a positive int or"),
        ("twins", 2, "img_size: the stages and sr_ratios need sides of at least"),
    ],
)
def test_sizes_that_do_not_fit_leave_the_model_alone(kind, size, message):
    model, x = built(kind)
    before, shape = model(x), model.image_shape()
    with pytest.raises(ChoiceError, match=message):
        model.set_input_size(size)
    assert torch.equal(model(x), before)
    assert model.image_shape() == shape


@pytest.mark.parametrize("change", ["image size", "classes"])
@pytest.mark.parametrize("kind", ["deit", "twins"])
def test_budgets_notice(kind, change):
    model, x = built(kind)
    sampler, costs = SubnetSampler(model, flops="60%"), cost_model(model)
    if change == "classes":
        model.reset_classifier(50)
    else:
        model.set_input_size(2 * x.shape[2])
    for use in (lambda: sampler.sample(0), lambda: costs.flops(search_space(model).largest())):
        with pytest.raises(VitasError, match=r"make a new .*: the .* has changed"):
            use()
    sampler = SubnetSampler(model, flops="60%")
    assert all(count_flops(model, sampler.sample(step)).total <= sampler.windows["flops"].high for step in range(5))


# -- layer-wise learning rates -----------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kind", ["deit", "twins"])
def test_layers_are_grouped_as_timm_groups_them(kind, coarse):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        name = {"deit": "deit_tiny_patch16_224", "twins": "twins_svt_small"}[kind]
        theirs = timm.create_model(name)
        ours = create_superformer({"deit": "deit_tiny", "twins": "twins_svt_small"}[kind])
    expected = timm.models.group_parameters(theirs, theirs.group_matcher(coarse), reverse=True)
    for model in (ours, export_subnet(ours)):
        assert timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True) == expected
        assert model.no_weight_decay() == set(theirs.no_weight_decay()) & {name for name, _ in model.named_parameters()}


@pytest.mark.extras
@pytest.mark.parametrize("kind", list(BUILD))
def test_timms_layer_wise_decay_takes_superformers_and_exports(kind):
    optim = pytest.importorskip("timm.optim")
    model, _ = built(kind)
    for one in (model, export_subnet(model)):
        groups = optim.param_groups_layer_decay(one, no_weight_decay_list=one.no_weight_decay(), layer_decay=0.5)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in one.parameters())
        scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        named = dict(one.named_parameters())
        assert scale[id(named["head.weight"])] == 1
        tables = [p for n, p in named.items() if n.startswith(("pos_embed", "cls_token", "dist_token", "patch_embed"))]
        stem = tables if kind != "twins" else [named["patch_embeds.0.proj.weight"]]
        assert {scale[id(parameter)] for parameter in stem} == {min(scale.values())}
        assert all(decay[id(named[name])] == 0 for name in one.no_weight_decay())
