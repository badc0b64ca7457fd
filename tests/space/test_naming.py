"""Several searchable models below one module: a student and its teacher, two towers, ensembles."""

import copy

import pytest
import torch
from torch import nn

import vitas
from tests.contract import macs, randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import (
    ChoiceError,
    Dim,
    SubnetSampler,
    activate_subnet,
    active_subnet,
    count_params,
    count_subnets,
    export_subnet,
    load_superformer,
    sample_subnet,
    save_superformer,
    search_space,
    use_subnet,
)
from vitas.nn import CyclicLinear


class Pair(nn.Module):
    """A module of a user's own around two models, as a LightningModule is."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x):
        return self.student(x) - self.teacher(x)


def mean_teacher():
    student = randomize(small().double()).eval()
    return Pair(student, copy.deepcopy(student))


def averaged():
    student = randomize(small().double()).eval()
    return Pair(student, torch.optim.swa_utils.AveragedModel(student))


def towers():
    return Pair(randomize(small().double()).eval(), randomize(small(depth=[2, 3]).double(), seed=4).eval())


@pytest.mark.parametrize("build", [mean_teacher, averaged, towers])
def test_names_begin_with_the_path_and_each_model_keeps_its_own(build):
    pair = build()
    both, student, teacher = search_space(pair), search_space(pair.student), search_space(pair.teacher)
    assert list(both.choices) == [f"student.{n}" for n in student.choices] + [f"teacher.{n}" for n in teacher.choices]
    assert both.choices["student.depth"] is student.choices["depth"]
    assert both.choices["teacher.depth"] is teacher.choices["depth"]
    assert set(student.choices) == set(search_space(small()).choices)
    assert both.size == count_subnets(pair) == student.size * teacher.size


@pytest.mark.parametrize("build", [mean_teacher, averaged, towers])
def test_both_are_drawn_activated_counted_and_exported(build):
    pair = build()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    subnet = sample_subnet(pair, only={"student.*.num_heads": [1]}, generator=torch.Generator().manual_seed(2))
    own = {
        part: {n.removeprefix(f"{part}."): v for n, v in subnet.items() if n.startswith(part)}
        for part in ("student", "teacher")
    }
    assert active_subnet(pair.student) == own["student"]
    assert active_subnet(pair.teacher) == own["teacher"]
    assert {own["student"][n] for n in own["student"] if n.endswith("num_heads")} == {1}
    parts = {part: export_subnet(getattr(pair, part), own[part]) for part in own}
    assert torch.equal(pair(x), pair.student(x) - pair.teacher(x))
    assert torch.equal(parts["student"](x), pair.student(x))
    assert count_params(pair, subnet) == sum(p.numel() for part in parts.values() for p in part.parameters())
    total = vitas.count_flops(pair, subnet, inputs=x[:1]).total
    assert total == sum(macs(part, x[:1]) for part in parts.values())
    export_subnet(pair, subnet, verify=x)
    with use_subnet(pair, search_space(pair).smallest()):
        assert active_subnet(pair.teacher) == search_space(pair.teacher).smallest()
    assert active_subnet(pair) == subnet
    activate_subnet(pair.teacher, search_space(pair.teacher).largest())
    assert active_subnet(pair.student) == own["student"]
    assert SubnetSampler(pair, seed=1).sample(3) == SubnetSampler(pair, seed=1).sample(3)
    assert SubnetSampler(pair.student, flops="60%").sample(3) in search_space(pair.student)


def test_files_of_both(tmp_path):
    pair, other = mean_teacher(), towers()
    save_superformer(pair, tmp_path / "pair.safetensors")
    twin = Pair(randomize(small().double(), seed=8), randomize(small().double(), seed=9))
    load_superformer(twin, tmp_path / "pair.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(pair.state_dict().values(), twin.state_dict().values(), strict=True))
    with pytest.raises(vitas.errors.FileError, match="another search space"):
        load_superformer(other, tmp_path / "pair.safetensors")


@pytest.mark.extras
def test_both_are_searched():
    pytest.importorskip("optuna")
    pair = towers()
    fit = lambda model: -float(count_params(model))  # noqa: E731
    options = {"population": 4, "generations": 2, "progress": False, "only": {"*.embed_dim": [4, 8]}}
    best = vitas.evolve(pair, fit, **options).best
    assert best in search_space(pair)
    assert {best["student.embed_dim"], best["teacher.embed_dim"]} <= {4, 8}


def test_ensembles_of_pairs_wrappers_and_lists():
    pairs = nn.ModuleDict({name: mean_teacher() for name in ("one", "other")})
    assert {name.rpartition(".")[0] for name in search_space(pairs).choices if name.endswith("depth")} == {
        "one.student",
        "one.teacher",
        "other.student",
        "other.teacher",
    }
    model = small()
    several = nn.ModuleList([model, copy.deepcopy(model), small_twins()])
    names = list(search_space(several).choices)
    assert {"0.depth", "1.depth", "stages.0.depth"} <= set(names)  # the third has names of its own
    inside = nn.ModuleDict({"net": mean_teacher(), "neck": nn.Sequential(CyclicLinear(3, Dim([2, 4], name="width")))})
    assert {"net.student.depth", "net.teacher.depth", "width"} <= set(search_space(inside).choices)


@pytest.mark.parametrize("wrapper", [lambda m: m, lambda m: nn.ModuleDict({"model": m})])
def test_one_model_is_called_as_alone(wrapper):
    assert "embed_dim" in search_space(wrapper(small())).choices


class Around(nn.Module):
    """One model whose two parts hold a width that stands outside of them too."""

    def __init__(self):
        super().__init__()
        self.width = Dim([2, 4], name="width")
        self.first = nn.Sequential(CyclicLinear(3, self.width))
        self.second = copy.deepcopy(self.first)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Around, "width: .* hold two copies of what was one Dim"),
        (
            lambda: nn.Sequential(*[copy.deepcopy(one) for one in [nn.Sequential(CyclicLinear(3, W))] * 2]),
            "hold two copies of what was one",
        ),
        (lambda: nn.ModuleList([CyclicLinear(3, W), copy.deepcopy(CyclicLinear(W, 3))]), "hold two copies of what was one"),
        (
            lambda: nn.ModuleDict({k: CyclicLinear(3, Dim([2, 4], name="width")) for k in "ab"}),
            "two choices are called 'width', at a.out_dim and at b.out_dim; give one another name=",
        ),
    ],
)
def test_parts_of_one_model_are_refused_as_before(build, message):
    with pytest.raises(ChoiceError, match=message):
        search_space(build())


def test_copied_blocks_of_one_model_are_refused_though_they_hold_different_choices():
    model = small(embed_dim=8)
    model.blocks[1] = copy.deepcopy(model.blocks[0])
    with pytest.raises(ChoiceError, match="hold two copies of what was one"):
        search_space(model)


W = Dim([2, 4], name="width")
