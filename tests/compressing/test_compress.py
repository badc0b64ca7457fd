import copy
import json
import sys

import pytest
import torch
from torch import nn

import vitas
from tests.clock import count_for_time
from vitas import BudgetError, ChoiceError, VitasError, compress
from vitas.compressing import WRAP, from_teacher
from vitas.errors import FileError, ShapeError
from vitas.measure.cross_entropy import CrossEntropy

_facts_of_order = sys.modules[compress.__module__]._facts_of_order  # `vitas.compressing.compress` is the function

pytestmark = pytest.mark.extras


def original():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, num_classes=3, embed_dim=32, depth=2, num_heads=2)


def loaders():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 3, 8, 8, generator=generator), torch.randint(3, (32,), generator=generator)
    data = torch.utils.data.TensorDataset(*data)
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True), torch.utils.data.DataLoader(data, batch_size=32)


def compressed(model=None, **options):
    settings = {"flops": "60%", "epochs": 2, "finetune_epochs": 2, "population": 3, "generations": 2, "progress": False}
    return compress(original() if model is None else model, *loaders(), **{**settings, **options})


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_network_is_plain_inside_the_budget_and_the_original_is_left_alone():
    model = original()
    before = copy.deepcopy(model)
    done = compressed(model)
    assert equal(model, before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert type(done.network) is type(model)
    assert not done.network.training
    image = torch.zeros(1, 3, 8, 8)
    counts = [vitas.count_flops(network, inputs=image).total for network in (model, done.network)]
    assert tuple(counts) == done.flops
    assert counts[1] <= 0.6 * counts[0]
    assert done.params == tuple(sum(p.numel() for p in network.parameters()) for network in (model, done.network))
    score = vitas.accuracy(loaders()[1])
    assert done.accuracy["original"] == score(model)
    assert done.accuracy["fine-tuned"] == score(done.network)
    assert len(done.search.history) == 6
    assert done.search.best == min(done.search.history, key=lambda one: (one.scores["loss"], one.scores["flops"])).subnet
    whole = vitas.wrap(model, **WRAP)
    alike = vitas.compressing.alike(vitas.SubnetSampler(whole, flops="60%"), 3)
    assert [one.subnet for one in done.search.history[:3]] == alike
    assert done.search.best == done.subnet
    lines = repr(done).splitlines()
    assert [line.split()[0] for line in lines] == ["network", "original", "inherited", "fine-tuned"]
    assert f"{counts[1]:,}" in lines[3]


class Stopped:
    """A loss that stops a call at one of its steps."""

    def __init__(self, at):
        self.left = at

    def __call__(self, logits, taught, labels):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return from_teacher(logits, taught, labels)


def test_a_call_that_was_stopped_goes_on_to_the_same_network(tmp_path):
    whole = compressed()
    for at in (6, 3, 10):  # second epoch of the superformer, then of the network
        with pytest.raises(KeyboardInterrupt):
            compressed(folder=tmp_path, loss=Stopped(at))
    done = compressed(folder=tmp_path)
    assert done.subnet == whole.subnet
    assert equal(done.network, whole.network)
    again = compressed(folder=tmp_path, loss=Stopped(0))  # nothing is left to train
    assert equal(again.network, whole.network)
    assert again.accuracy == whole.accuracy
    assert equal(vitas.load_subnet(tmp_path / "network"), whole.network)


@pytest.mark.parametrize("at", [2, 5])  # the first call scores the original
def test_ctrl_c_in_the_search_stops_the_call_and_it_goes_on_to_the_same_network(at, tmp_path, monkeypatch):
    whole, calls = compressed(), []
    score = CrossEntropy.__call__

    def pressed(self, model):
        calls.append(model)
        if len(calls) == at:
            raise KeyboardInterrupt
        return score(self, model)

    monkeypatch.setattr(CrossEntropy, "__call__", pressed)
    with pytest.raises(KeyboardInterrupt):
        compressed(folder=tmp_path)
    assert not (tmp_path / "fine-tuned.pt").exists()
    done = compressed(folder=tmp_path)
    assert done.subnet == whole.subnet
    assert equal(done.network, whole.network)
    assert equal(vitas.load_subnet(tmp_path / "network"), whole.network)


def test_a_folder_holds_the_network_that_is_returned_and_no_state_of_another(tmp_path):
    done = compressed(folder=tmp_path)
    (tmp_path / "search.log").unlink()
    state = torch.load(tmp_path / "fine-tuned.pt")
    assert state["subnet"] == done.subnet
    torch.save({**state, "subnet": {**done.subnet, "depth": 3 - done.subnet["depth"]}}, tmp_path / "fine-tuned.pt")
    with pytest.raises(FileError, match=r"fine-tuned\.pt: a state of another subnet; remove it to start anew"):
        compressed(folder=tmp_path)
    (tmp_path / "fine-tuned.pt").unlink()
    vitas.save_subnet(original(), tmp_path / "network", overwrite=True)
    again = compressed(folder=tmp_path)
    assert equal(again.network, done.network)
    assert equal(vitas.load_subnet(tmp_path / "network"), done.network)


def test_a_folder_of_another_order_is_refused(tmp_path):
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = {"order": "activation", "images": images}
    done = compressed(folder=tmp_path, space=own)
    for other in ({}, {"order": None}, {**own, "images": images + 1}):
        with pytest.raises(FileError, match="made for another order; name another folder"):
            compressed(folder=tmp_path, space=other, loss=Stopped(0))
    assert equal(compressed(folder=tmp_path, space=own, loss=Stopped(0)).network, done.network)


def test_orders_are_told_apart_but_for_functions():
    images = torch.arange(4.0)
    orders = [(None, None), ("magnitude", None), ("activation", images), ("activation", (images, images))]
    orders += [("activation", images + 1), ({"depth": [1, 2]}, None), ({"depth": [2, 1]}, None), (len, None)]
    facts = [json.dumps(_facts_of_order(*order)) for order in orders]
    assert len(set(facts)) == len(orders)
    assert facts == [json.dumps(_facts_of_order(*order)) for order in orders]


def test_latency_is_a_budget_that_the_folder_keeps(tmp_path, monkeypatch):
    count_for_time(monkeypatch)
    done = compressed(flops=None, latency="70%", folder=tmp_path)
    model = vitas.wrap(original(), **WRAP)
    space, text = vitas.search_space(model), (tmp_path / "latency.json").read_text()
    budget = (vitas.LatencyTable.from_json(text, model), "70%")
    inside = vitas.SubnetSampler(model, latency=budget).contains(space.encode(done.subnet)[None])
    assert inside[0]
    assert 0 < vitas.count_subnets(model, latency=budget) < space.size
    again = compressed(flops=None, latency="70%", folder=tmp_path, loss=Stopped(0))  # times nothing anew
    assert again.subnet == done.subnet


def test_a_folder_of_another_call_is_refused(tmp_path):
    compressed(folder=tmp_path)
    other = original()
    nn.init.zeros_(other.head.weight)
    with pytest.raises(FileError, match="made for another model; name another folder"):
        compressed(other, folder=tmp_path)
    with pytest.raises(FileError, match="made for another lr and budget; name another folder"):
        compressed(folder=tmp_path, flops="70%", lr=1e-3)
    (tmp_path / "settings.json").write_text("no JSON")
    with pytest.raises(FileError, match="made for another model"):
        compressed(folder=tmp_path)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "settings.json").symlink_to("/dev/zero")
    with pytest.raises(FileError, match="cannot be used"):
        compressed(folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be used"):
        compressed(folder=tmp_path / "file")


def test_the_loss_and_the_space_can_be_ones_own():
    seen = []

    def loss(logits, taught, labels):
        seen.append(tuple(map(tuple, (logits.shape, taught.shape, labels.shape))))
        assert not taught.requires_grad
        return nn.functional.cross_entropy(logits, labels)

    done = compressed(loss=loss, space={"embed_dim": ["50%", "100%"], "depth": None}, params="50%", flops=None, amp=True)
    assert set(seen) == {((8, 3), (8, 3), (8,))}
    assert len(seen) == 2 * 4 + 2 * 4
    assert "depth" not in done.subnet
    assert done.params[1] <= 0.5 * done.params[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flops": None}, BudgetError, 'expected a budget, such as flops="50%"'),
        ({"flops": "0.1%"}, BudgetError, "flops"),
        ({"epochs": 0}, ChoiceError, "epochs: expected a positive int, got 0"),
        ({"finetune_epochs": 1.5}, ChoiceError, "finetune_epochs: expected a positive int, got 1.5"),
        ({"population": 1}, ChoiceError, "population: expected an int of at least 2, got 1"),
        ({"generations": 0}, ChoiceError, "generations: expected a positive int, got 0"),
        ({"loss": "ce"}, ChoiceError, "loss: expected a function"),
        ({"device": "gpu"}, ChoiceError, "device: got 'gpu'"),
        ({"device": "meta"}, ChoiceError, "device: got 'meta'"),
        ({"folder": 3}, VitasError, "3: cannot be used"),
        ({"lr": 0}, ChoiceError, "lr: expected a number above 0, got 0"),
        ({"lr": "fast"}, ChoiceError, "lr: "),
        ({"space": {"dept": "auto"}}, ChoiceError, "space: expected one of .*, got 'dept'"),
        ({"space": "auto"}, ChoiceError, "space: expected arguments of wrap"),
        ({"amp": "yes"}, VitasError, "amp: "),
        ({"amp": torch.float16}, VitasError, "amp: "),
        ({"model": nn.Linear(2, 2)}, VitasError, "Linear"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(options, error, message):
    with pytest.raises(error, match=message):
        compressed(**{"loss": Stopped(0), **options})


def test_validation_images_are_looked_at_before_anything_is_trained():
    images = torch.randn(4, 3, 8, 8)
    for batches in ([], [{"image": images}], [(images, torch.tensor([0, 1, 2, 3]))], [(images, torch.rand(4))]):
        with pytest.raises(VitasError):
            compress(original(), loaders()[0], batches, flops="60%", loss=Stopped(0), progress=False)


def test_a_generator_of_validation_images_is_read_once_and_frozen_weights_are_trained():
    settings = {"flops": "60%", "epochs": 1, "finetune_epochs": 1, "population": 2, "generations": 1, "progress": False}
    train_loader, val_loader = loaders()
    frozen = original().requires_grad_(False)
    done = compress(frozen, train_loader, iter(val_loader), latency="100%", **settings)
    assert done.accuracy == compress(original(), train_loader, val_loader, latency="100%", **settings).accuracy
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(VitasError, match=r"train_loader: expected a pair of tensors .* got a dict"):
        compress(original(), [{"image": images} for images, _ in val_loader], val_loader, **settings)


def test_the_search_scores_by_labels_and_original_and_mlps_go_down_to_an_eighth(monkeypatch):
    module, given = sys.modules[compress.__module__], {}
    searched = module.evolve

    def evolve(model, score, **options):
        given["before"] = score(model), vitas.cross_entropy(loaders()[1], teacher=original())(model)
        given["mlp"] = vitas.search_space(model).choices["blocks.0.mlp_dim"].values
        return searched(model, score, **options)

    monkeypatch.setattr(module, "evolve", evolve)
    compressed()
    assert given["before"][0] == given["before"][1]
    assert list(given["mlp"]) == [16, 32, 48, 64, 96, 128]


def test_an_original_that_gives_no_numbers_is_refused_before_anything_is_trained():
    images = torch.randn(4, 3, 8, 8)
    images[2] = float("nan")
    with pytest.raises(VitasError, match="val_loader: the loss of the model on these images is nan"):
        compress(original(), loaders()[0], [(images, torch.zeros(4, dtype=torch.long))], flops="60%", loss=Stopped(0))


def batches(images, labels):
    return [(images, labels)]


IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS + 1, r"labels: expected 0 to 2, the classes of the model, got 1 to 3"),
        (IMAGES, LABELS - 1, r"labels: expected 0 to 2, the classes of the model, got -1 to 1"),
        (IMAGES, LABELS.float(), r"labels: expected ints of shape \(4,\), got float32 \(4,\); loss= takes others"),
        (IMAGES, LABELS[:, None], r"labels: expected ints of shape \(4,\), got int64 \(4, 1\); loss= takes others"),
        (IMAGES.byte(), LABELS, r"images: expected float32, as the model, got uint8 \(4, 3, 8, 8\)"),
        (IMAGES.double(), LABELS, r"images: expected float32, as the model, got float64 \(4, 3, 8, 8\)"),
        (IMAGES, LABELS - 100, r"labels: expected 0 to 2, the classes of the model, got -100 to -98"),
        (IMAGES[:0], LABELS[:0], r"images: expected \(batch, 3, height, width\), not empty, got float32 \(0, 3, 8, 8\)"),
        (IMAGES[0], LABELS, r"images: expected \(batch, 3, height, width\), not empty, got float32 \(3, 8, 8\)"),
        (IMAGES[:, :1], LABELS, r"images: expected \(batch, 3, height, width\), not empty, got float32 \(4, 1, 8, 8\)"),
        (
            torch.zeros(4, 3, 9, 8),
            LABELS,
            r"images: the model refuses float32 \(4, 3, 9, 8\): Input height \(9\) doesn't match",
        ),
    ],
)
def test_a_training_batch_that_does_not_fit_is_one_line(images, labels, message):
    with pytest.raises(ShapeError, match=message) as caught:
        compress(original(), batches(images, labels), loaders()[1], flops="60%", progress=False)
    assert "\n" not in str(caught.value)


def test_validation_images_and_weights_of_another_kind_are_refused_at_once():
    with pytest.raises(ShapeError, match="images: expected float32"):
        compress(original(), loaders()[0], batches(IMAGES.byte(), LABELS), flops="60%", loss=Stopped(0), progress=False)
    with pytest.raises(ShapeError, match=r"images: the model refuses float32 \(4, 3, 8, 16\)"):
        compress(original(), loaders()[0], batches(IMAGES.repeat(1, 1, 1, 2), LABELS), flops="60%", loss=Stopped(0))
    for kind in (torch.float16, torch.bfloat16):
        with pytest.raises(ChoiceError, match=r"model: weights of torch\..*float16 cannot be trained, pass model.float\(\)"):
            compressed(original().to(kind), loss=Stopped(0))
    mixed = original()
    mixed.head.double()
    with pytest.raises(ChoiceError, match=r"model: weights of torch.float32, torch.float64, expected one dtype; pass"):
        compressed(mixed, loss=Stopped(0))
