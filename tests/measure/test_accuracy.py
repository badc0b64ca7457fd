import copy
import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vitas
from tests.contract import randomize
from vitas import VitasError, accuracy, create_superformer, search_space, zero_cost
from vitas.errors import ChoiceError, ShapeError
from vitas.measure.zero_cost import dss


def micro(**overrides):
    model = create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=5, **overrides)
    return randomize(model)


def batches(sizes=(7, 7, 3), classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(classes, (n,), generator=generator)) for n in sizes]


@torch.no_grad()
def by_hand(network, loader):
    """The fraction of images whose largest output stands at their label, one image at a time."""
    flags = {part: part.training for part in network.modules()}
    network.eval()
    right = [network(x[None])[0].tolist() for images, _ in loader for x in images]
    labels = [int(label) for _, labels in loader for label in labels]
    for part, flag in flags.items():
        part.training = flag
    return sum(row.index(max(row)) == label for row, label in zip(right, labels, strict=True)) / len(labels)


def flags(model):
    return [part.training for part in model.modules()]


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_fraction_classified_right_by_the_active_subnet():
    model, data = micro(), batches()
    evaluate = accuracy(data)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(6):
        vitas.sample_subnet(model, generator=generator)
        assert evaluate(model) == by_hand(vitas.export_subnet(model), data)
        seen.add(evaluate(model))
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int32])
def test_labels_are_any_ints(kind):
    model, data = micro(), batches()
    assert accuracy([(images, labels.to(kind)) for images, labels in data])(model) == accuracy(data)(model)


def test_accuracy_of_outputs_known_beforehand():
    images = torch.eye(4)[[0, 1, 2, 3, 0]]
    evaluate = accuracy([(images, torch.tensor([0, 1, 0, 3, 1]))])
    assert evaluate(nn.Identity()) == 3 / 5
    broken = images.clone()
    broken[0, 2] = math.nan  # its prediction means nothing, whatever argmax returns
    for label in range(4):
        labels = torch.tensor([label, 1, 0, 3, 1])
        assert accuracy([(broken, labels)])(nn.Identity()) == 2 / 5


def test_any_iterable_of_pairs_will_do_and_is_read_once():
    data = batches((4, 4, 4))
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    model = micro()
    expected = by_hand(model, data)
    assert accuracy(DataLoader(TensorDataset(images, labels), batch_size=5))(model) == expected
    assert accuracy([[images, labels.int()]])(model) == expected

    class Counted(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return super().__iter__()

    counted = Counted(data)
    evaluate = accuracy(counted)
    assert evaluate(model) == evaluate(model) == expected
    assert counted.reads == 1
    evaluate = accuracy(batch for batch in data)  # a generator
    assert evaluate(model) == evaluate(model) == expected
    assert accuracy([*data, (images[:0], labels[:0])])(model) == expected  # an empty batch


def test_bilateral_sharing_gives_the_mean_of_both_sides():
    model, data = micro(sharing="bilateral"), batches()
    evaluate = accuracy(data)
    space = search_space(model)
    generator = torch.Generator().manual_seed(3)
    unequal = 0
    for side in ("left", "right", "right"):
        subnet = space.sample(generator)
        space.activate(subnet, side=side)
        sides = [by_hand(vitas.export_subnet(model, subnet, side=each), data) for each in ("left", "right")]
        unequal += sides[0] != sides[1]
        assert evaluate(model) == pytest.approx(sum(sides) / 2, rel=1e-12)
        assert space.active() == subnet
        assert space.side == side
    assert unequal


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of order")


def test_the_model_comes_back_as_it_was_also_after_an_error():
    model = micro(sharing="bilateral", proj_drop_rate=0.5)
    model.train()
    model.blocks[1].eval()  # a frozen part
    before = flags(model)
    assert len(set(before)) == 2
    space = search_space(model)
    space.activate(space.smallest(), side="right")
    state = space.state()
    evaluate = accuracy(batches())
    assert evaluate(model) == evaluate(model)  # no dropout
    assert flags(model) == before
    assert space.state() == state
    model.head = nn.Sequential(model.head, Failing())
    before = flags(model)
    with pytest.raises(RuntimeError, match="out of order"):
        evaluate(model)
    assert flags(model) == before
    assert space.state() == state
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_recorded_for_gradients():
    grads = []

    class Spy(nn.Linear):
        def forward(self, x):
            grads.append(torch.is_grad_enabled() or super().forward(x).requires_grad)
            return super().forward(x)

    accuracy([(torch.randn(3, 4), torch.tensor([0, 1, 1]))])(Spy(4, 2))
    assert grads == [False]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_works_through_ddp_without_its_forward(process_group, monkeypatch):
    model, data = micro(sharing="bilateral"), batches()
    vitas.sample_subnet(model, policy="smallest")
    expected = accuracy(data)(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    monkeypatch.setattr(type(wrapped), "forward", Failing.forward)  # it may wait for ranks that do not evaluate
    before = flags(wrapped)
    assert accuracy(data)(wrapped) == expected
    assert flags(wrapped) == before
    assert accuracy(data)(torch.compile(wrapped, backend="eager")) == expected  # also further inside


def test_runs_the_compiled_model():
    model, data = micro(), batches()
    runs = []

    def backend(graph, inputs):
        return lambda *args: runs.append(1) or graph.forward(*args)

    expected = accuracy(data)(model)
    assert accuracy(data)(torch.compile(model, backend=backend)) == expected
    assert runs


def test_amp_runs_under_autocast():
    types = []

    class Spy(nn.Linear):
        def forward(self, x):
            types.append(super().forward(x).dtype)
            return super().forward(x)

    data = [(torch.randn(3, 4), torch.tensor([0, 1, 1]))]
    model = Spy(4, 2)
    accuracy(data, amp=True)(model)
    accuracy(data)(model)
    assert types == [torch.bfloat16, torch.float32]
    with pytest.raises(ChoiceError, match="amp: expected True or False, got 'bf16'"):
        accuracy(data, amp="bf16")


def test_batches_are_moved_once_and_kept():
    moved = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                moved.append(args[1])
                return args[0].as_subclass(torch.Tensor)
            return super().__torch_function__(func, types, args, kwargs or {})

    images = torch.randn(4, 3).as_subclass(Watched)
    evaluate = accuracy([(images, torch.tensor([0, 1, 0, 1]))], device="cpu")
    assert moved == []
    for _ in range(2):
        evaluate(nn.Linear(3, 2))
    assert moved == [torch.device("cpu")]
    meta = accuracy([(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], device="meta")
    with pytest.raises(RuntimeError):  # the model stands elsewhere
        meta(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], VitasError, "loader: it gave no images"),
        ([(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))], VitasError, "it gave no images"),
        (3, VitasError, r"loader: expected an iterable of \(images, labels\), got int"),
        (torch.zeros(3, 2), VitasError, "got Tensor"),
        ([torch.zeros(3, 2)], ShapeError, r"batch 0: expected a pair of tensors \(images, labels\), got float32 \(3, 2\)"),
        ([{"image": 1}], ShapeError, "batch 0: .* got a dict"),
        ([(torch.zeros(2, 3), torch.tensor([0, 1]), 1)], ShapeError, "got a tuple of 3"),
        ([(torch.zeros(2, 3), torch.zeros(2, 3))], ShapeError, r"labels \(B,\) of ints, got float32 \(2, 3\) and float32"),
        ([(torch.zeros(2, 3), torch.zeros(2))], ShapeError, "of ints"),
        ([(torch.zeros(2, 3), torch.tensor([True, False]))], ShapeError, r"of ints, got float32 \(2, 3\) and bool \(2,\)"),
        ([(torch.zeros(2, 3), torch.tensor([1j, 0]))], ShapeError, r"of ints, got float32 \(2, 3\) and complex64 \(2,\)"),
        ([(torch.tensor(0.5), torch.tensor([0]))], ShapeError, r"images \(B, ...\) .* got float32 \(\) and int64 \(1,\)"),
        ([(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))], ShapeError, r"float32 \(2, 3\) and int64 \(3,\)"),
        ([(torch.zeros(2, 3), torch.tensor([0, -1]))], ShapeError, "labels of at least 0, got -1"),
    ],
)
def test_a_loader_that_does_not_fit_is_refused_at_once(loader, error, message):
    with pytest.raises(error, match=message):
        accuracy(loader)


class Counting:
    """A loader that counts how often it is read, and how far."""

    def __init__(self, data):
        self.data, self.begun, self.given = data, 0, 0

    def __iter__(self):
        self.begun += 1
        for batch in self.data:
            self.given += 1
            yield batch


def test_a_loader_that_is_not_kept_is_read_for_each_score():
    model, data = micro(), batches((5, 3))
    expected, loader = by_hand(model, data), Counting(data)
    evaluate = accuracy(loader, keep=False)
    assert (loader.begun, loader.given, evaluate.images) == (1, 1, None)  # a first batch was looked at
    assert repr(evaluate) == "accuracy, read again for each score"
    assert evaluate(model) == evaluate(model) == expected
    assert (loader.begun, loader.given, evaluate.images) == (3, 5, 8)
    assert repr(evaluate) == "accuracy on 8 images, read again for each score"
    loader.data = []
    with pytest.raises(VitasError, match="loader: it gave no images"):
        evaluate(model)
    loader.data = [(torch.zeros(2, 1, 8, 8), torch.zeros(2))]
    with pytest.raises(ShapeError, match="loader: batch 0: expected images"):
        evaluate(model)
    with pytest.raises(VitasError, match="keep=False reads it again for each score, and a generator can be read only once"):
        accuracy(iter(data), keep=False)
    with pytest.raises(ShapeError, match="expected a pair of tensors"):
        accuracy([torch.zeros(2)], keep=False)


class Endless:
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return itertools.cycle(self.data)


@pytest.mark.parametrize("keep", [True, False])
def test_an_endless_loader_is_read_as_far_as_asked(keep):
    model, data = micro(), batches((5, 3, 4))
    evaluate = accuracy(Endless(data), batches=2, keep=keep)
    assert evaluate(model) == by_hand(model, data[:2])
    assert evaluate.images == 8
    with pytest.raises(ChoiceError, match="batches: expected a positive int, got 0"):
        accuracy(data, batches=0)


def test_how_much_is_kept_is_shown():
    images, labels = torch.zeros(64, 1, 64, 64), torch.zeros(64, dtype=torch.long)
    assert repr(accuracy([(images, labels)])) == "accuracy on 64 images, 1.0 MiB kept"  # 64 * (64 * 64 * 4 + 8) bytes


@pytest.mark.extras
def test_a_progress_bar_counts_the_batches(capsys):
    data = batches((5, 3, 4))
    accuracy(data, progress=True, batches=2)
    assert "/2 [" in capsys.readouterr().err
    with pytest.raises(ChoiceError, match="progress: expected True or False, got 1"):
        accuracy(data, progress=1)


@pytest.mark.parametrize("device", ["gpu", 1.5, []])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ChoiceError, match=re.escape(f"device: got {device!r}")):
        accuracy(batches(), device=device)


def test_outputs_that_do_not_fit_are_refused():
    data = [(torch.randn(2, 3), torch.tensor([0, 4]))]
    with pytest.raises(ShapeError, match="expected at least 5 classes, as the labels have, got 3"):
        accuracy(data)(nn.Identity())
    with pytest.raises(ShapeError, match=r"outputs: expected a tensor \(2, classes\), got float32 \(6,\)"):
        accuracy(data)(nn.Flatten(0))
    with pytest.raises(ShapeError, match="got a tuple of 2"):
        accuracy(data)(nn.LSTM(3, 5))
    with pytest.raises(ShapeError, match=r"\(2, classes\), got float32 \(2, 5, 1\)"):  # maps, as of a segmentation
        accuracy(data)(nn.Sequential(nn.Linear(3, 5), nn.Unflatten(1, (5, 1))))
    with pytest.raises(ShapeError, match=r"\(2, classes\), got float32 \(1, 6\)"):  # would count for both labels
        accuracy(data)(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 6))))


# -- zero cost ---------------------------------------------------------------------------------------------------------


def nuclear_norm(matrix):
    return torch.linalg.matrix_norm(matrix, "nuc")


def indicator(network, x):
    """The formula on a plain network, by backward(), block by block."""
    network = copy.deepcopy(network).double().eval()
    for parameter in network.parameters():
        parameter.data.abs_()
    network(torch.ones(1, *x.shape[1:], dtype=torch.float64)).sum().backward()
    diversity = saliency = 0.0
    for block in network.blocks:
        for weight in (block.attn.qkv.weight, block.attn.proj.weight):
            diversity += (nuclear_norm(weight.grad) * nuclear_norm(weight)).item()
        for weight in (block.mlp.fc1.weight, block.mlp.fc2.weight):
            saliency += torch.dot(weight.grad.flatten(), weight.flatten()).item()
    return diversity, saliency


def test_zero_cost_is_the_formula_on_the_active_subnet():
    model = micro()
    x = torch.randn(2, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        subnet = vitas.sample_subnet(model, generator=generator)
        network = vitas.export_subnet(model)
        expected = indicator(network, x)
        assert dss(model, x) == pytest.approx(expected, rel=1e-9)
        assert zero_cost(model, x) == pytest.approx(sum(expected), rel=1e-9)
        assert zero_cost(network, x) == zero_cost(model, x)
        assert vitas.active_subnet(model) == subnet


class Nested(nn.Module):
    """An `mlp` inside `attn`, an `mlp`, and one layer of each kind that never runs."""

    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({"mlp": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
        self.mlp = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})

    def forward(self, x):
        return self.mlp["used"](self.attn["mlp"](x))


def test_zero_cost_counts_each_layer_once_and_as_nought_what_never_runs():
    network = randomize(Nested())
    w1, b1 = (parameter.detach().double().abs() for parameter in network.attn["mlp"].parameters())
    w2 = network.mlp["used"].weight.detach().double().abs()
    gradient_norm = w2.sum(0).norm() * 4**0.5  # dR/dW of the first layer is an outer product, with the ones of the image
    diversity = (gradient_norm * nuclear_norm(w1)).item()
    saliency = (w2 @ (w1.sum(1) + b1)).sum().item()
    assert dss(network, torch.randn(2, 4)) == pytest.approx((diversity, saliency), rel=1e-9)


def test_zero_cost_looks_at_the_shape_of_an_image_only_and_leaves_the_model_alone():
    model = micro(proj_drop_rate=0.5).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        score = zero_cost(model, x)
    assert score == zero_cost(model, torch.full_like(x, math.nan)) > 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_zero_cost_grows_with_depth():
    torch.manual_seed(0)
    model = create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=5)
    space = search_space(model)
    scores = []
    for depth in (1, 3, 6):
        space.activate(space.subnet({"depth": depth}, fill="largest"))
        scores.append(zero_cost(model, torch.zeros(1, 1, 8, 8)))
    assert scores == sorted(scores)


def test_zero_cost_refuses_what_it_cannot_score():
    with pytest.raises(VitasError, match=r"Linear: expected linear layers under the names 'attn' and 'mlp', got 0 and 0"):
        zero_cost(nn.Linear(3, 2), torch.zeros(1, 3))
    for inputs in (torch.zeros(0, 1, 8, 8), [1.0], torch.tensor(1.0)):
        with pytest.raises(ShapeError, match="inputs: expected a batch of at least one image"):
            zero_cost(micro(), inputs)


def test_a_model_on_the_meta_device_has_no_numbers_to_score():
    with torch.device("meta"):
        model = micro()
    images = torch.zeros(2, 1, 8, 8)
    batches = [(images, torch.zeros(2, dtype=torch.long))]
    for score in (accuracy(batches), accuracy(batches, device="cpu"), lambda model: zero_cost(model, images)):
        with pytest.raises(VitasError, match=r"^DeiTSuperformer is on the meta device, without numbers; build or load"):
            score(model)
    model = micro()
    model.register_buffer("forgotten", torch.zeros(1, device="meta"), persistent=False)
    with pytest.raises(VitasError, match="is on the meta device"):
        accuracy(batches)(model)


def test_zero_cost_of_images_that_the_model_cannot_run_is_refused():
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8)
    with pytest.raises(ShapeError, match=r"inputs: VisionTransformer cannot run them: .*\(1, 3, 9, 9\)"):
        vitas.zero_cost(model, torch.zeros(2, 3, 9, 9))


@pytest.mark.parametrize("kind", [accuracy, vitas.cross_entropy])
def test_a_loader_may_use_its_memory_again(kind):
    data, model = batches(sizes=(4, 4, 4)), micro()
    images, labels = torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.long)

    def reused():
        for batch in data:
            images.copy_(batch[0])
            labels.copy_(batch[1])
            yield images, labels

    assert kind(reused())(model) == kind(data)(model)


def test_batches_of_a_list_are_not_copied():
    data = batches()
    assert [kept.images.data_ptr() for kept in accuracy(data)._kept] == [images.data_ptr() for images, _ in data]


class Stream(torch.utils.data.IterableDataset):
    """Images that come one after the other, nobody knows how many."""

    def __iter__(self):
        return iter([(image, label) for images, labels in batches() for image, label in zip(images, labels, strict=True)])


@pytest.mark.extras
def test_a_progress_bar_of_a_loader_that_does_not_know_its_length(capsys):
    pytest.importorskip("tqdm")
    loader = DataLoader(Stream(), batch_size=7)
    assert accuracy(loader, progress=True)(micro()) == accuracy(batches())(micro())
    assert "0batch" in capsys.readouterr().err  # and of how many is not said
