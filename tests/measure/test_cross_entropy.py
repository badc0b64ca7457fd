import math
import sys

import pytest
import torch
from torch import nn

import vitas
from tests.measure.test_accuracy import batches, micro
from vitas.errors import ChoiceError, SearchError, ShapeError, VitasError
from vitas.measure.accuracy import Accuracy
from vitas.measure.cross_entropy import CrossEntropy
from vitas.measure.score import Batch


@torch.no_grad()
def by_hand(network, loader):
    """The mean of -log p(label), one image at a time, in double precision."""
    network.eval()
    logits = [
        (network(x[None])[0].double().tolist(), int(label))
        for images, labels in loader
        for x, label in zip(images, labels, strict=True)
    ]
    return sum(math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in logits) / len(logits)


def test_cross_entropy_is_the_mean_loss_of_the_active_subnet():
    model, data = micro(), batches()
    evaluate = vitas.cross_entropy(data)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(6):
        vitas.sample_subnet(model, generator=generator)
        assert evaluate(model) == pytest.approx(by_hand(vitas.export_subnet(model), data), rel=1e-5)
        seen.add(evaluate(model))
    assert len(seen) == 6  # it tells apart what an accuracy on 17 images calls equal
    assert repr(evaluate) == "cross entropy on 17 images, 0.0 MiB kept"


def test_cross_entropy_of_outputs_known_beforehand():
    images, labels = torch.zeros(3, 8), torch.tensor([0, 5, 7])
    assert vitas.cross_entropy([(images, labels)])(nn.Identity()) == pytest.approx(math.log(8))
    images[1, 5] = math.log(7)  # p = 1/2
    expected = (2 * math.log(8) + math.log(2)) / 3
    assert vitas.cross_entropy([(images, labels)])(nn.Identity()) == pytest.approx(expected)
    assert vitas.cross_entropy([(images.half(), labels.to(torch.uint8))])(nn.Identity()) == pytest.approx(expected, rel=1e-3)


def test_both_sides_count_alike():
    model, data = micro(sharing="bilateral"), batches()
    space, evaluate = vitas.search_space(model), vitas.cross_entropy(data)
    subnet = space.smallest()
    sides = []
    for side in ("left", "right"):
        with vitas.use_subnet(model, subnet, side=side):
            sides.append(by_hand(vitas.export_subnet(model), data))
    with vitas.use_subnet(model, subnet):
        assert evaluate(model) == pytest.approx(sum(sides) / 2, rel=1e-5)


def test_outputs_that_are_no_numbers_are_a_failure_of_the_search():
    pytest.importorskip("optuna")
    images, labels = batches()[0]
    model = micro()
    with torch.no_grad():
        model.head.bias[0] = math.nan
    score = vitas.cross_entropy([(images, labels)])
    assert math.isnan(score(model))
    settings = {"objectives": {"loss": "min"}, "population": 2, "generations": 1, "progress": False}
    assert all(one.error for one in vitas.evolve(model, score, **settings).history)


def test_a_search_takes_the_smallest_loss():
    pytest.importorskip("optuna")
    model, data = micro(), batches()
    settings = {"objectives": {"loss": "min"}, "population": 4, "generations": 2, "progress": False}
    result = vitas.evolve(model, vitas.cross_entropy(data), **settings)
    best = min(result.history, key=lambda one: one.scores["loss"])
    assert result.best == best.subnet
    assert best.scores["loss"] == pytest.approx(by_hand(vitas.export_subnet(model, best.subnet), data), rel=1e-5)


@pytest.mark.parametrize("objectives", [None, {"loss": "max"}, {"accuracy": "max", "flops": "min"}])
def test_a_search_that_would_take_the_largest_loss_is_refused(objectives):
    pytest.importorskip("optuna")
    settings = {"objectives": objectives, "population": 2, "generations": 1, "progress": False}
    with pytest.raises(SearchError, match=r'the smaller the cross entropy the better; pass objectives=\{"loss": "min"\}'):
        vitas.evolve(micro(), vitas.cross_entropy(batches()), **settings)


@pytest.mark.parametrize("objectives", [{"loss": "min"}, {"accuracy": "min"}, {"flops": "min", "error": "min"}])
def test_a_search_that_would_take_the_smallest_accuracy_is_refused(objectives):
    pytest.importorskip("optuna")
    settings = {"objectives": objectives, "population": 2, "generations": 1, "progress": False}
    with pytest.raises(SearchError, match=r'the larger the accuracy the better; pass objectives=\{"accuracy": "max"\}'):
        vitas.evolve(micro(), vitas.accuracy(batches()), **settings)


def test_what_does_not_fit_is_refused_as_by_accuracy():
    with pytest.raises(ShapeError, match="labels of at least 0, got -1"):
        vitas.cross_entropy([(torch.zeros(2, 3), torch.tensor([0, -1]))])
    score = vitas.cross_entropy([(torch.zeros(2, 3), torch.tensor([0, 3]))])
    with pytest.raises(ShapeError, match="at least 4 classes, as the labels have, got 3"):
        score(nn.Identity())


def test_a_report_does_not_take_it_for_an_accuracy():
    model, data = micro(), batches()
    score = vitas.cross_entropy(data)
    report = vitas.train.supernet_report(model, lambda m: -score(m), n_random=3)
    assert report.images is None
    assert report.noise is None
    with pytest.raises(
        ChoiceError, match=r"of the cross entropy less is better, here more; pass lambda model: -score\(model\)"
    ):
        vitas.train.supernet_report(model, score)


# -- with a teacher ----------------------------------------------------------------------------------------------------


def test_with_a_teacher_its_probabilities_count_as_much_as_the_labels():
    images, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 4, 0])
    teacher = nn.Linear(5, 5)
    score = vitas.cross_entropy([(images[:4], labels[:4]), (images[4:], labels[4:])], teacher=teacher)
    p, log_q = teacher(images).softmax(1).double(), images.double().log_softmax(1)
    expected = [-(log_q[i, label] + (p[i] * log_q[i]).sum()) / 2 for i, label in enumerate(labels)]
    assert score(nn.Identity()) == pytest.approx(sum(one.item() for one in expected) / 6, rel=1e-5)


def test_a_teacher_sees_each_image_once_in_eval_mode_and_an_accuracy_can_share_the_images():
    model, data, seen = micro(), batches(), []
    teacher = vitas.export_subnet(micro()).train()
    teacher.register_forward_hook(lambda module, inputs, _: seen.append((len(inputs[0]), module.training)))
    score = vitas.cross_entropy(data, teacher=teacher)
    right = Accuracy.on_images_of(score)
    values = {score(model) for _ in range(3)}
    assert len(values) == 1
    assert seen == [(7, False), (7, False), (3, False)]
    assert teacher.training
    assert right(model) == vitas.accuracy(data)(model)
    assert right.images == score.images == 17
    assert repr(right).startswith("accuracy on 17 images")
    again = vitas.cross_entropy(data, teacher=teacher, keep=False)
    assert again(model) == again(model) == score(model)
    assert len(seen) == 9  # where nothing is kept it sees them each time


def test_teachers_that_do_not_fit_are_refused(monkeypatch):
    images, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(VitasError, match="teacher: expected a module, got 'vit'"):
        vitas.cross_entropy([(images, labels)], teacher="vit")
    with pytest.raises(ShapeError, match=r"outputs: expected \(2, 4\), as the teacher's, got \(2, 3\)"):
        vitas.cross_entropy([(images, labels)], teacher=nn.Linear(3, 4))(nn.Identity())
    with pytest.raises(ShapeError, match="teacher: expected outputs"):
        vitas.cross_entropy([(images, labels)], teacher=nn.Flatten(0))(nn.Identity())
    with pytest.raises(VitasError, match="teacher: has choices, so that it would be what is active"):
        vitas.cross_entropy([(images, labels)], teacher=micro())
    with pytest.raises(VitasError, match="Linear is on the meta device"):
        vitas.cross_entropy([(images, labels)], teacher=nn.Linear(3, 3, device="meta"))(nn.Identity())
    monkeypatch.setattr(sys.modules[CrossEntropy.__module__], "device_of", lambda module: torch.device("cuda:0"))
    with pytest.raises(VitasError, match="teacher: is on cuda:0 and the images on cpu; move it there"):
        vitas.cross_entropy([(images, labels)], teacher=nn.Linear(3, 3))(nn.Identity())


def test_what_a_teacher_said_moves_with_the_images():
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 1, torch.zeros(1, 2)).to(torch.device("meta"))
    assert {tensor.device.type for tensor in batch if isinstance(tensor, torch.Tensor)} == {"meta"}
