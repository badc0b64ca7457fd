import copy
import io
import itertools
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import vitas
from tests.contract import PLAIN_LEAVES, is_plain, leaves, randomize, relative_error
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import ChoiceError, activate_subnet, active_subnet, export_subnet, sample_subnet, search_space
from vitas.errors import ExportError


def modules_in(pickled: bytes) -> set[str]:
    """Return the modules that unpickling would import from."""
    found = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(module)
            return super().find_class(module, name)

    Recorder(io.BytesIO(pickled)).load()
    return found


FAMILIES = pytest.mark.parametrize(("build", "size"), [(small, (8, 8)), (small_twins, (12, 10))], ids=["deit", "twins"])


@pytest.mark.parametrize(
    ("build", "options"),
    [(small, {"drop_path_rate": 0.1, "init_values": 0.1, "distilled": True}), (small_twins, {"drop_path_rate": 0.1})],
)
def test_a_pickled_export_names_only_torch_and_vitas_plain(build, options):
    plain = export_subnet(build(**options))
    names = modules_in(pickle.dumps(plain))
    allowed = {"torch", "collections", "vitas.plain", "builtins"}
    assert {name if name == "vitas.plain" else name.split(".")[0] for name in names} <= allowed
    assert "vitas.plain" in names


@FAMILIES
def test_plain_works_as_a_lone_file(build, size, tmp_path):
    model = randomize(build()).eval()
    plain = export_subnet(model)
    x = torch.randn(2, 2, *size)
    (tmp_path / "plain.py").write_text(Path(vitas.plain.__file__).read_text())
    torch.save({"x": x, "y": plain(x), "weights": plain.state_dict()}, tmp_path / "data.pt")
    buffer = io.BytesIO()
    pickle.dump(plain, buffer)
    (tmp_path / "model.pkl").write_bytes(buffer.getvalue())
    program = """
import sys, types, pickle, torch
import plain
package = types.ModuleType("vitas"); package.plain = plain
sys.modules["vitas"], sys.modules["vitas.plain"] = package, plain
model = pickle.load(open("model.pkl", "rb"))
data = torch.load("data.pt")
torch.testing.assert_close(model(data["x"]), data["y"])
assert not any(name.startswith("vitas.") and name != "vitas.plain" for name in sys.modules)
"""
    environment = {"PATH": "", "PYTHONSAFEPATH": "", "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


@FAMILIES
def test_leaves_are_exactly_torchs(build, size):
    plain = export_subnet(build(drop_path_rate=0.1))
    assert {type(leaf) for leaf in leaves(plain)} <= PLAIN_LEAVES | {vitas.plain.DropPath}


@FAMILIES
def test_exports_survive_deepcopy_pickle_and_torch_export(build, size):
    model = randomize(build().double()).eval()
    sample_subnet(model, generator=torch.Generator().manual_seed(3))
    plain = export_subnet(model)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = model(x)
    assert torch.equal(plain(x), expected)
    assert torch.equal(copy.deepcopy(plain)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x[:1]), expected[:1], rtol=1e-12, atol=1e-12)


def test_the_models_active_subnet_is_untouched():
    model = small()
    sample_subnet(model, generator=torch.Generator().manual_seed(0))
    before = active_subnet(model)
    export_subnet(model, search_space(model).smallest())
    with pytest.raises(ChoiceError):
        export_subnet(model, {"embed_dim": 5})
    assert active_subnet(model) == before


def test_fresh_weights_are_drawn_anew_as_the_model_draws_them():
    model = randomize(small(depth=1)).double().eval().requires_grad_(False)
    first, second = (export_subnet(model, weights="fresh") for _ in range(2))
    inherited = export_subnet(model)
    for name, weight in first.state_dict().items():
        assert weight.shape == inherited.state_dict()[name].shape
        assert weight.dtype == torch.float64
        if name.endswith("weight") and "norm" not in name:
            assert not torch.equal(weight, second.state_dict()[name])
            assert not torch.equal(weight, inherited.state_dict()[name])
    assert first.head.bias.abs().max() == 0  # timm's initialisation, not torch.nn.Linear's
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_verify_compares_and_restores_the_modes():
    model = randomize(small(drop_path_rate=0.5)).train()
    model.blocks[0].eval()
    x = torch.randn(2, 2, 8, 8)
    plain = export_subnet(model, verify=x)
    assert model.training
    assert plain.training
    assert not model.blocks[0].training
    assert not plain.blocks[0].training


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_verify_finds_a_difference(error, monkeypatch):
    model = randomize(small())
    broken = vitas.nn.CyclicLinear.export

    def off(self):
        plain = broken(self)
        with torch.no_grad():
            plain.weight.add_(error)
        return plain

    monkeypatch.setattr(vitas.nn.CyclicLinear, "export", off)
    with pytest.raises(ExportError, match="differ by"):
        export_subnet(model, verify=torch.randn(2, 2, 8, 8))


def test_words_that_are_not_known_are_refused():
    model = small()
    with pytest.raises(ChoiceError, match="weights: expected one of inherit, fresh, got 'frsh'"):
        export_subnet(model, weights="frsh")
    with pytest.raises(ChoiceError, match="nothing to be compared"):
        export_subnet(model, weights="fresh", verify=torch.zeros(1))
    with pytest.raises(ChoiceError, match="no Dim of this model is bilateral"):
        export_subnet(model, side="right")
    with pytest.raises(ExportError, match="Linear has no elastic layers"):
        export_subnet(nn.Linear(2, 2))


def test_both_sides_of_a_bilateral_subnet_export():
    model = randomize(small(sharing="bilateral").double()).eval()
    subnet = search_space(model).smallest()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    outputs = {}
    for side in ("left", "right"):
        activate_subnet(model, subnet, side=side)
        outputs[side] = model(x)
        assert relative_error(export_subnet(model, subnet, side=side)(x), outputs[side]) <= 1e-12
    activate_subnet(model, subnet, side="right")
    assert relative_error(export_subnet(model)(x), outputs["right"]) <= 1e-12  # the active one, its side included
    assert relative_error(export_subnet(model, side="left")(x), outputs["left"]) <= 1e-12
    assert relative_error(outputs["left"], outputs["right"]) > 1e-3


class Recalibrated(nn.Module):
    """A user's own block: a raw weight cut with dim.take, an unnamed Dim, a nested module, a plain layer."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.hidden = vitas.Dim([3, 6])
        self.scale = nn.Parameter(torch.randn(width.largest))
        self.inner = nn.ModuleDict(
            {"up": vitas.nn.CyclicLinear(width, self.hidden), "down": vitas.nn.CyclicLinear(self.hidden, width)}
        )

    def forward(self, x):
        x = x * self.width.take(self.scale)
        return x + self.inner["down"](torch.relu(self.inner["up"](x))) / self.width.active


class Own(nn.Module):
    """A user's own model."""

    def __init__(self):
        super().__init__()
        width = vitas.Dim([2, 4, 8])
        self.stem = vitas.nn.CyclicLinear(5, width)
        self.body = vitas.nn.ShiftableIdentity([Recalibrated(width) for _ in range(3)])
        self.heads = [vitas.Choice([1, 2], name="temperature")]
        self.norm = nn.BatchNorm1d(3)
        self.head = vitas.nn.CyclicLinear(width, 3)

    def forward(self, x):
        return self.norm(self.head(self.body(self.stem(x)))) * self.heads[0].active


class WithOwnWeights(Recalibrated):
    """The same, saying which part of its raw weight is in use, so that the export is cut."""

    def active_weights(self):
        return {"scale": self.width.take(self.scale)}


def test_a_users_own_model_is_sampled_and_exported_by_the_same_functions():
    model = randomize(Own().double()).eval()
    space = search_space(model)
    assert set(space.choices) == {"temperature", "stem.out_dim", "body.depth", *(f"body.{i}.hidden" for i in range(3))}
    assert space.size == 3 * 2 * (2 + 4 + 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64)
    for _ in range(20):
        subnet = sample_subnet(model, generator=generator)
        plain = export_subnet(model, subnet, verify=x)
        assert is_plain(plain)
        assert relative_error(plain(x), model(x)) <= 1e-12
        assert vitas.count_params(model, subnet) == sum(parameter.numel() for parameter in plain.parameters())
        assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))


def test_a_users_active_weights_are_cut_in_the_export():
    width = vitas.Dim([2, 4, 8])
    model = randomize(WithOwnWeights(width).double())
    width.active = 4
    plain = export_subnet(model)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert plain.scale.shape == (4,)
    assert relative_error(plain(x), model(x)) <= 1e-12


def test_fresh_weights_of_a_users_raw_parameter_need_a_way_to_draw_them():
    with pytest.raises(ExportError, match=r"body.0: Recalibrated has weights but no reset_parameters\(\)"):
        export_subnet(Own(), weights="fresh")


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "double", "assign", "ema", "meta"])
def test_the_active_subnet_survives_what_people_do_to_models(how):
    model = randomize(small())
    subnet = sample_subnet(model, generator=torch.Generator().manual_seed(5))
    x = torch.randn(2, 2, 8, 8)
    expected = model.eval()(x)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif how == "double":
        twin, x, expected = copy.deepcopy(model).double(), x.double(), expected.double()
    elif how == "assign":
        twin = randomize(small(), seed=1).eval()
        activate_subnet(twin, subnet)
        twin.load_state_dict(model.state_dict(), assign=True)
    elif how == "ema":
        twin = torch.optim.swa_utils.AveragedModel(model)
    else:
        twin = copy.deepcopy(model).to("meta")
        assert twin(x.to("meta")).shape == expected.shape
        expected = None
    assert active_subnet(twin) == subnet
    assert list(search_space(twin).choices) == list(search_space(model).choices)
    if expected is not None:
        torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-5)
    sample_subnet(model, policy="smallest")  # the copy has a subnet of its own
    assert active_subnet(twin) == subnet


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vitas_deit_exports_exactly_over_every_pattern_side_patch_head_count_and_depth(dtype):
    generator = torch.Generator().manual_seed(0)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    x = torch.randn(1, 3, 224, 224, generator=generator, dtype=dtype)
    patterns = ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"]
    tried = 0
    for sharing in patterns:
        model = randomize(vitas.create_superformer("vitas_deit", sharing=sharing).to(dtype)).eval()
        space = search_space(model)
        depths = itertools.cycle(range(1, 17))
        patches = itertools.cycle([14, 16, 32])
        heads = itertools.cycle([3, 6, 12, 16])
        for _ in range(20):
            drawn = {**space.sample(generator), "patch_size": next(patches)}
            drawn["depth"] = next(depths)
            drawn["blocks.0.num_heads"] = next(heads)
            blocks = {**{name: value for name, value in space.sample(generator).items() if "blocks" in name}, **drawn}
            subnet = space.subnet(blocks, fill="largest")
            for side in ("left", "right") if sharing == "bilateral" else (None,):
                with torch.no_grad(), vitas.use_subnet(model, subnet, side=side):
                    plain = export_subnet(model)
                    assert relative_error(plain(x), model(x)) <= tolerance, (sharing, side, subnet)
            tried += 1
    assert tried == 100


@dataclass
class Settings:
    """A place where nothing looks for choices."""

    choice: vitas.Choice


def test_a_choice_that_cannot_be_reached_stops_the_export():
    layer = vitas.nn.CyclicLinear(2, vitas.Dim([2, 4]))
    model = nn.Sequential(layer)
    model.settings = Settings(vitas.Choice([1, 2]))
    with pytest.raises(ExportError, match="still searchable"):
        export_subnet(model)


def test_requires_grad_is_kept_tensor_by_tensor():
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name == "pos_embed.2")
    for patch in (2, 4):
        plain = export_subnet(model, {**search_space(model).largest(), "patch_size": patch})
        for name, parameter in plain.named_parameters():
            assert parameter.requires_grad == (name.endswith("bias") or (name == "pos_embed" and patch == 2)), name


def test_an_unrelated_method_called_export_is_left_alone():
    class Exporter(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = vitas.nn.CyclicLinear(2, vitas.Dim([2, 4]))

        def forward(self, x):
            return self.fc(x)

        def export(self, path):
            raise AssertionError(path)

    x = torch.randn(1, 2)
    model = Exporter()
    assert torch.equal(export_subnet(model)(x), model(x))


def test_a_model_without_choices_exports_with_no_subnet_or_an_empty_one():
    model = small(patch_size=4, embed_dim=8, depth=2, num_heads=2, qkv_dim=8, mlp_dim=8, private=None)
    assert set(export_subnet(model, {}).state_dict()) == set(export_subnet(model).state_dict())


class TwoLayers(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = vitas.nn.CyclicLinear(8, first), vitas.nn.CyclicLinear(second, 4)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_broken_tie_is_refused_also_where_the_active_subnet_is_exported():
    width = vitas.Dim([3, 6])
    model = TwoLayers(width, width)
    model.second = copy.deepcopy(model.second)
    width.active = 3
    with pytest.raises(ChoiceError, match="hold two copies of what was one"):
        export_subnet(model)


class Tied(TwoLayers):
    """Two layers with one weight."""

    def __init__(self):
        width = vitas.Dim([4, 8])
        super().__init__(width, 8)
        self.second = vitas.nn.CyclicLinear(8, width)
        self.second.weight = self.first.weight


def one_head():
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8, distilled=True)
    model.head_dist = model.head
    return model


def recurrent():
    block = vitas.nn.ElasticMlp(4, vitas.Dim([4, 8]))
    return nn.Sequential(vitas.nn.ShiftableIdentity([block, block, block], name="depth"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Tied, "'first.weight' and 'second.weight' are one weight, two in the export"),
        (one_head, "'head.weight' and 'head_dist.weight' are one weight, two in the export"),
        (recurrent, "'0.0.fc1.weight' and '0.1.fc1.weight' are one weight, two in the export"),
    ],
)
def test_weights_that_an_export_would_untie_are_refused(build, message):
    with pytest.raises(ExportError, match=message):
        export_subnet(build())


def test_ties_that_an_export_keeps_are_exported_and_counted_once():
    layer, shared = vitas.nn.CyclicLinear(8, vitas.Dim([4, 8])), nn.Linear(8, 8)
    model = nn.Sequential(nn.Sequential(shared, nn.Linear(8, 8)), nn.Sequential(shared, layer), nn.Sequential(layer))
    model[0][1].weight = shared.weight
    plain = export_subnet(model)
    assert plain[0][0] is plain[1][0]
    assert plain[0][1].weight is plain[0][0].weight
    assert plain[1][1] is plain[2][0]
    assert vitas.count_params(model) == sum(parameter.numel() for parameter in plain.parameters())


def test_an_export_made_in_inference_mode_can_be_trained():
    width = vitas.Dim([3, 6])
    model = TwoLayers(width, width)
    with torch.inference_mode():
        plain = export_subnet(model, {"first.out_dim": 3}, verify=torch.randn(2, 8))
        width = vitas.Dim([2, 5])  # its marks are saved for a checkpoint later
    plain(torch.randn(2, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    TwoLayers(width, width)(torch.randn(2, 8)).sum().backward()


def test_a_forward_pass_of_ones_own_needs_an_export_of_ones_own():
    class Doubled(vitas.nn.CyclicLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(8, vitas.Dim([3, 6])))
    with pytest.raises(ExportError, match=r"Doubled overrides forward\(\) of an elastic layer"):
        export_subnet(model)

    class Renamed(vitas.nn.CyclicLinear):
        def reset_parameters(self):
            nn.init.ones_(self.weight)

    assert type(export_subnet(nn.Sequential(Renamed(8, vitas.Dim([3, 6]))))[0]) is nn.Linear


class Halved:
    """What stands before a superformer, or around one."""

    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits) / 2


class Half(Halved, vitas.superformer.DeiTSuperformer):
    pass


class Sharp(vitas.nn.ElasticAttention):
    def axes(self):
        return {}

    def attend(self, x):
        return 2 * super().attend(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Half(8, 4, 3, 3, embed_dim=[4, 8], depth=[1, 2], num_heads=2), r"^Halved overrides forward_head\(\) of an"),
        (lambda: Sharp(8, vitas.Choice([1, 2])), r"^Sharp overrides attend\(\) of an elastic layer: give it an export\(\)"),
    ],
)
def test_helpers_of_the_forward_pass_that_are_overridden_need_an_export_too(model, message):
    with pytest.raises(ExportError, match=message):
        export_subnet(nn.Sequential(model()))


@pytest.mark.parametrize("how", ["weight_norm", "pruned", "frozen"])
def test_reparametrised_weights_export_as_what_they_are(how):
    width = vitas.Dim([3, 6])
    model = randomize(TwoLayers(width, width))
    if how == "weight_norm":
        nn.utils.parametrizations.weight_norm(model.first)
    else:
        prune.random_unstructured(model.first, "weight", 0.5)
    if how == "frozen":
        model.requires_grad_(False)
    width.active = 3
    plain = export_subnet(model, verify=torch.randn(2, 8))
    assert type(plain.first) is nn.Linear
    assert list(plain.first.state_dict()) == ["weight", "bias"]
    assert {parameter.requires_grad for parameter in plain.parameters()} == {how != "frozen"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "reparametrise",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: [prune.random_unstructured(layer, name, 0.2) for name in ("weight", "weight", "bias")],
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["pruned", "pruned_twice", "weight_norm", "spectral_norm"],
)
def test_weights_that_a_hook_makes_are_exported_as_they_are_after_a_step(reparametrise):
    width, x = vitas.Dim([3, 6]), torch.randn(2, 8)
    model = randomize(TwoLayers(width, width))
    reparametrise(model.first)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    width.active = 3
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    plain = export_subnet(model.eval())
    assert torch.equal(plain(x), model(x))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = vitas.nn.CyclicLinear(8, vitas.Dim([3, 6]))

    def forward(self, x, scale):
        return {"out": self.fc(x) * scale, "more": [self.fc(x), x.argmax(dim=1)]}


@pytest.mark.parametrize("inputs", [(), (None,), [torch.zeros(1)], 3])
def test_verify_needs_a_tensor(inputs):
    with pytest.raises(ChoiceError, match="verify: expected"):
        export_subnet(small(), verify=inputs)


def test_verify_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = small()
    with pytest.raises(vitas.VitasError, match="DeiTSuperformer is on the meta device"):
        export_subnet(model, verify=torch.randn(2, 2, 8, 8))


def test_verify_takes_several_inputs_and_outputs():
    model, x = TwoInputs(), torch.randn(5, 8)
    export_subnet(model, verify=(x, 2.0))
    with pytest.raises(ChoiceError, match="verify: the outputs hold no numbers"):
        export_subnet(model, verify=(x[:0], 2.0))
    with pytest.raises(ChoiceError, match="verify: expected a batch or a tuple of inputs, got True"):
        export_subnet(model, verify=True)


def test_verify_looks_at_every_output():
    class Different(TwoInputs):
        def forward(self, x, scale):
            outputs = super().forward(x, scale)
            searchable = isinstance(self.fc, vitas.nn.CyclicLinear)
            return {**outputs, **({"more": [outputs["more"][0], 1 - outputs["more"][1]]} if searchable else {})}

    with pytest.raises(ExportError, match="differ by inf"):
        export_subnet(Different(), verify=(torch.randn(5, 8), 2.0))


@pytest.mark.parametrize("subnet", [[], 0, torch.zeros(3)])
def test_what_is_no_subnet_is_refused(subnet):
    model = vitas.create_superformer("deit_micro", img_size=8, num_classes=3)
    with pytest.raises(ChoiceError, match="subnet: expected a mapping of names to numbers"):
        vitas.export_subnet(model, subnet)
