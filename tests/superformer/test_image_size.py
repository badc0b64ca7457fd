"""The size of images as a choice: outputs, counts, exports and files follow the active size."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F

import vitas
from tests.contract import macs, randomize, relative_error
from tests.superformer.test_twins import small as small_twins
from vitas import Choice, ChoiceError, create_superformer
from vitas.errors import FileError, ShapeError
from vitas.superformer import DeiTSuperformer

DEIT = {"patch_size": [2, 4], "embed_dim": [4, 6, 8], "depth": range(1, 4), "num_heads": [1, 2], "qkv_dim": [4, 6]}
SIZES = {"deit": [8, 12, 16], "distilled": [8, 12, 16], "twins": [9, 12, 16]}  # 9: maps are rounded down, windows padded


def built(kind, sizes=None, **options):
    sizes = SIZES[kind] if sizes is None else sizes
    if kind == "twins":
        model = small_twins(img_size=sizes, **options)
    else:
        space = {**DEIT, "mlp_dim": [3, 6, 8], "private": "qk", "num_classes": 5, "in_chans": 2, **options}
        model = DeiTSuperformer(sizes, distilled=kind == "distilled", **space)
    return randomize(model.double()).eval()


def images(model, side, n=2):
    return torch.randn(n, model.image_shape()[0], side, side, dtype=torch.float64)


def draws(model, n=1):
    """Yield `n` subnets of every size, and the largest and the smallest of all."""
    space, generator = vitas.search_space(model), torch.Generator().manual_seed(0)
    yield from (space.smallest(), space.largest())
    for side, _ in itertools.product(space.values["img_size"], range(n)):
        yield space.restrict({"img_size": side}).sample(generator)


@pytest.mark.parametrize("kind", SIZES)
def test_exports_are_networks_of_the_active_size(kind, tmp_path):
    model = built(kind)
    costs = vitas.cost_model(model)
    assert model.image_shape()[1:] == (16, 16)
    for subnet in draws(model):
        vitas.activate_subnet(model, subnet)
        side = subnet["img_size"]
        x, export = images(model, side), vitas.export_subnet(model)
        assert model.img_size == (side, side)
        assert torch.equal(model(x), export(x))
        assert vitas.count_flops(model).total == costs.flops(subnet) == macs(export, x[:1])
        assert vitas.count_flops(model, inputs=images(model, 16, 1)).total == costs.flops(subnet)
        assert vitas.count_params(model) == costs.params(subnet) == sum(p.numel() for p in export.parameters())
        if kind == "twins":
            continue
        assert export.patch_embed.img_size == (side, side)
        maps = (network.forward_intermediates(x, intermediates_only=True)[-1] for network in (model, export))
        assert torch.equal(*maps)
    vitas.save_subnet(export, tmp_path / "net")
    assert torch.equal(vitas.load_subnet(tmp_path / "net")(x), export(x))


@pytest.mark.parametrize("kind", SIZES)
def test_images_of_any_size_of_the_space_are_resized(kind):
    model = built(kind)
    for subnet, side in itertools.product(draws(model), SIZES[kind]):
        vitas.activate_subnet(model, subnet)
        x, active = images(model, side), subnet["img_size"]
        resized = x if side == active else F.interpolate(x, (active, active), mode="bicubic", antialias=True)
        assert torch.equal(model(x), vitas.export_subnet(model, verify=x)(resized))
    with pytest.raises(ShapeError, match=r"images: expected shape .*, S one of \d+, 12, 16, got \(2, 2, 14, 14\)"):
        model(torch.zeros(2, 2, 14, 14))


@pytest.mark.parametrize("kind", SIZES)
def test_a_subnet_is_the_one_of_a_model_of_that_size(kind):
    """An independent reference: the model of the largest size alone, given the smaller one by `set_input_size`."""
    model = built(kind)
    for side in SIZES[kind]:
        alone = built(kind, 16)
        alone.load_state_dict(model.state_dict())  # the same keys and shapes
        alone.set_input_size(side)
        x = images(model, side)
        for subnet in draws(model):
            subnet = {**subnet, "img_size": side}
            rest = {name: value for name, value in subnet.items() if name != "img_size"}
            with vitas.use_subnet(model, subnet), vitas.use_subnet(alone, rest):
                assert relative_error(model(x), alone(x)) <= 1e-6  # in single precision
                assert vitas.count_flops(model).total == vitas.count_flops(alone).total
                assert vitas.count_params(model) == vitas.count_params(alone)


@pytest.mark.extras
def test_positions_are_resampled_as_timm_does():
    layers = pytest.importorskip("timm.layers")
    model = built("distilled", patch_size=2).float()
    for side in (8, 12):
        vitas.search_space(model).choices["img_size"].active = side
        theirs = layers.resample_abs_pos_embed(model.pos_embed, [side // 2, side // 2], num_prefix_tokens=2)
        assert relative_error(model.tables()["pos_embed"], theirs) <= 1e-6


@pytest.mark.parametrize("kind", SIZES)
def test_one_size_is_the_model_that_it_was(kind):
    state = built(kind, 16).state_dict()
    for sizes in ([16], [16, 16], Choice([16]), (16, 16)):
        model = built(kind, sizes)
        assert "img_size" not in vitas.search_space(model).choices
        assert model.img_size == (16, 16)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert list(built(kind).state_dict()) == list(state)


def test_a_choice_of_ones_own_keeps_its_law_and_is_tied():
    model = built("deit", Choice([8, 16], p=[1, 0]))
    space = vitas.search_space(model)
    assert {space.sample()["img_size"] for _ in range(20)} == {8}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        vitas.activate_subnet(twin, vitas.search_space(twin).subnet({"img_size": 8}, fill="largest"))
        assert (twin.img_size, twin.patch_embed.img_size, model.img_size) == ((8, 8), (8, 8), (16, 16))


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("deit", [8, 10], "patch_size: 4 does not divide an image of 10 x 10 pixels"),
        ("twins", [3, 8], "img_size: the stages and sr_ratios need sides of at least 4 pixels, got 3 x 3"),
        ("deit", [8, 12.5], "img_size: expected positive ints"),
        ("twins", [8, 8, 12], "img_size: 8 is given twice"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind, sizes, message):
    with pytest.raises(ChoiceError, match=message):
        built(kind, sizes)


@pytest.mark.parametrize("kind", ["deit", "twins"])
def test_the_space_is_narrowed_and_widened(kind):
    model = built(kind)
    old, x, (least, middle, _) = copy.deepcopy(model), images(model, 16), SIZES[kind]
    vitas.narrow(model, only={"img_size": [least, 16]})
    assert vitas.search_space(model).values["img_size"] == (least, 16)
    for subnet in draws(model, 2):
        with vitas.use_subnet(model, subnet), vitas.use_subnet(old, subnet):
            assert torch.equal(model(x), old(x))
    vitas.narrow(model, fixed={"img_size": least})
    assert vitas.sample_subnet(model)["img_size"] == least
    joined = 4 if kind == "deit" else 10
    vitas.widen(model, {"img_size": [joined, middle, 16]})
    assert vitas.search_space(model).values["img_size"] == tuple(sorted({joined, *SIZES[kind]}))
    vitas.activate_subnet(model, vitas.search_space(model).subnet({"img_size": joined}, fill="largest"))
    assert torch.equal(model(x), vitas.export_subnet(model)(model.resized(x)))
    with pytest.raises(ChoiceError, match="widen: img_size: "):
        vitas.widen(model, {"img_size": [20]})
    wrong = {
        "deit": (6, "needs images that patches of 2, 4 pixels divide"),
        "twins": (3, "needs images with sides of at least 4"),
    }
    with pytest.raises(ChoiceError, match=f"widen: img_size: {wrong[kind][0]}: .* {wrong[kind][1]}"):
        vitas.widen(model, {"img_size": [wrong[kind][0]]})
    with pytest.raises(ChoiceError, match=r"img_size: it is searched, among .*: activate one, or leave one by vitas.narrow"):
        model.set_input_size(least)


@pytest.mark.parametrize("kind", ["deit", "twins"])
def test_files_of_superformers(kind, tmp_path):
    model, x = built(kind), images(built(kind), 16)
    vitas.activate_subnet(model, vitas.search_space(model).smallest())  # what is active does not matter to a file
    vitas.save_superformer(model, tmp_path / "model.safetensors")
    other, fewer = built(kind), built(kind, SIZES[kind][1:])
    vitas.load_superformer(randomize(other, 1), tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="another search space, different in img_size"):
        vitas.load_superformer(fewer, tmp_path / "model.safetensors")
    adapted = vitas.load_superformer(randomize(fewer, 1), tmp_path / "model.safetensors", adapt=True)
    assert (adapted.new, adapted.gone) == ({}, {"img_size": (SIZES[kind][0],)})
    for subnet in draws(fewer):
        for loaded in (other, fewer):
            with vitas.use_subnet(model, subnet), vitas.use_subnet(loaded, subnet):
                assert torch.equal(model(x), loaded(x))
    if kind == "deit":
        with pytest.raises(FileError, match=r"positions for images of \[16, 16\] pixels, here for \[20, 20\]; .*"):
            vitas.load_superformer(built(kind, [8, 12, 20]), tmp_path / "model.safetensors", adapt=True)


@pytest.mark.extras
def test_draws_counts_and_searches_follow_the_size():
    model = built("deit", embed_dim=[4, 8], depth=[1, 2], num_heads=2, qkv_dim=4, private=None, mlp_dim=8)
    space = vitas.search_space(model)
    names = list(space.choices)
    assert set(names) == {"embed_dim", "patch_size", "img_size", "depth"}
    subnets = [
        vitas.Subnet(dict(zip(names, values, strict=True)))
        for values in itertools.product(*(space.choices[name].values for name in names))
    ]
    assert space.size == len(subnets) == 24
    costs = [vitas.count_flops(model, subnet).total for subnet in subnets]
    budget = sorted(costs)[10]
    inside = {subnet for subnet, cost in zip(subnets, costs, strict=True) if cost <= budget}
    assert vitas.count_subnets(model, flops=(None, budget)) == len(inside) == 11
    sampler = vitas.SubnetSampler(model, flops=(None, budget))
    assert {sampler.sample(step, activate=False) for step in range(200)} == inside
    side = vitas.sample_subnet(model, fixed={"img_size": 12}, flops=(None, budget))["img_size"]
    assert side == 12
    cheapest = min(zip(costs, range(24), strict=True))[1]

    def evaluate(model):
        return -float(vitas.count_flops(model).total)

    result = vitas.evolve(model, evaluate, population=8, generations=6, progress=False)
    assert result.best == subnets[cheapest]


def test_a_subnet_is_built_by_its_name():
    options = {"img_size": [8, 16], "num_classes": 3}
    smallest = vitas.search_space(vitas.create_superformer("deit_micro", **options)).smallest()
    network = vitas.build_subnet("deit_micro", smallest, **options)
    assert network.patch_embed.img_size == (8, 8)
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 3)


def test_what_is_set_up_once_goes_on_whatever_size_is_active():
    model = built("deit")
    costs, space = vitas.cost_model(model), vitas.search_space(model)
    largest = costs.flops(space.largest())
    vitas.activate_subnet(model, space.smallest())
    assert costs.flops(space.largest()) == largest
    assert vitas.flop_analysis(model).total() == costs.flops(space.smallest())
    assert vitas.flop_analysis(model, space.largest()).total() == largest


def test_training_reaches_every_position():
    model = built("deit", patch_size=2).train()
    x, labels = images(model, 16, 4), torch.tensor([0, 1, 2, 3])
    for side in SIZES["deit"]:
        model.zero_grad(set_to_none=True)
        vitas.activate_subnet(model, vitas.search_space(model).subnet({"img_size": side}, fill="largest"))
        F.cross_entropy(model(x), labels).backward()
        assert model.pos_embed.grad.any(dim=2).all()


@pytest.mark.parametrize(("kind", "new"), [("deit", (8, 12)), ("twins", (9, 12, 16))])  # no file of Twins tells a size
def test_a_file_of_one_size_in_a_model_of_several_and_back(kind, new, tmp_path):
    one, several = built(kind, 16), randomize(built(kind), 1)
    vitas.save_superformer(one, tmp_path / "one.safetensors")
    adapted = vitas.load_superformer(several, tmp_path / "one.safetensors", adapt=True)
    assert (adapted.new, adapted.gone) == ({"img_size": new}, {})
    x = images(several, 16)
    assert torch.equal(several(x), one(x))
    vitas.save_superformer(several, tmp_path / "several.safetensors")
    for size in (16, 12):
        model = randomize(built(kind, size), 2)
        adapted = vitas.load_superformer(model, tmp_path / "several.safetensors", adapt=True)
        gone = tuple(side for side in SIZES[kind] if side != size)
        assert (adapted.new, adapted.gone) == ({}, {"img_size": gone})
        vitas.activate_subnet(several, {**vitas.search_space(model).largest(), "img_size": size})
        x = images(model, size)
        assert torch.equal(several(x), model(x))
    far = built(kind, 4 if kind == "deit" else 20)
    assert vitas.load_superformer(far, tmp_path / "several.safetensors", adapt=True).new == {"img_size": far.img_size[:1]}


@pytest.mark.parametrize("around", [False, True])
def test_what_runs_exports_brings_images_to_their_size(around):
    model = create_superformer("deit_micro", num_classes=5, img_size=[16, 32], depth=[1, 2])
    whole = torch.nn.Sequential(model) if around else model
    x = torch.randn(2, 3, 32, 32)
    found = {}
    for side in (16, 32):
        vitas.activate_subnet(whole, {**vitas.search_space(whole).largest(), "img_size": side})
        assert vitas.flop_analysis(whole, inputs=x[:1]).total() == vitas.count_flops(whole, inputs=x[:1]).total
        vitas.export_subnet(whole, verify=x)
        found[side] = vitas.zero_cost(model, x)
        assert found[side] == vitas.zero_cost(vitas.export_subnet(model), torch.ones(1, 3, side, side))
    assert found[16] != found[32]
    vitas.latency_table(whole, x[:1], warmup=0, runs=1, calibrate=1)


def test_what_cannot_be_is_refused_in_words_that_help(tmp_path):
    model = built("deit")
    with pytest.raises(ChoiceError, match="patches of 2, 4 pixels divide"):
        vitas.widen(model, {"img_size": [0]})
    with pytest.raises(ChoiceError, match="img_size is searched: activate_subnet"):
        model.img_size = (8, 8)
    vitas.save_superformer(built("deit", 16), tmp_path / "one.safetensors")
    with pytest.raises(FileError, match=r"only one of both has the choices img_size; adapt=True keeps what both have$"):
        vitas.load_superformer(model, tmp_path / "one.safetensors")
    vitas.save_superformer(built("deit", 8), tmp_path / "small.safetensors")  # positions are those of the largest images
    with pytest.raises(FileError, match=r"only one of both has the choices img_size$"):
        vitas.load_superformer(model, tmp_path / "small.safetensors")
    vitas.save_superformer(model, tmp_path / "several.safetensors")
    with pytest.raises(FileError, match=r"img_size$"):  # a rectangle is none of the searched squares
        vitas.load_superformer(built("deit", (8, 12)), tmp_path / "several.safetensors", adapt=True)
    vitas.narrow(model, fixed={"img_size": 12})
    with pytest.raises(ChoiceError, match="img_size: narrowed to 12; export a subnet"):
        model.set_input_size(8)


def test_a_latency_table_has_the_size_in_it():
    model = built("deit", [8, 16], patch_size=4, embed_dim=8, depth=[1, 2], num_heads=2, qkv_dim=4, private=None, mlp_dim=8)
    table = vitas.latency_table(model.float(), images(model, 16, 1).float(), warmup=0, runs=1, calibrate=1)
    of_size = [bases for (_, _, bases) in table.cost.terms if vitas.search_space(model).choices["img_size"] in bases]
    assert len(of_size) >= 4  # patches, and blocks that run on their number
    assert table.latency_ms(vitas.search_space(model).smallest()) >= 0
