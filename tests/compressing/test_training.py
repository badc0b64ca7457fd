import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitas import VitasError
from vitas.compressing.training import _groups, _rate, train
from vitas.errors import FileError

CPU = torch.device("cpu")


def images(number=24):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(number, 4, generator=generator), torch.randint(3, (number,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=8, shuffle=True)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 3))


def trained(folder=None, stop=math.inf, seed=0, epochs=4, loader=None):
    model, steps = network(), []

    def loss_of(step, x, y):
        if step == stop:
            raise KeyboardInterrupt
        steps.append(step)
        return F.cross_entropy(model(x), y)

    settings = {"lr": 1e-2, "seed": seed, "device": CPU, "folder": folder}
    with contextlib.suppress(KeyboardInterrupt):
        train(model, images() if loader is None else loader, loss_of, "net", epochs, **settings)
    return model, steps


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("stop", [0, 4, 9, 11])
def test_a_training_that_was_stopped_goes_on_to_the_same_end(stop, tmp_path):
    whole, steps = trained()
    assert steps == list(range(12))
    assert not whole.training
    _, before = trained(tmp_path, stop)
    again, after = trained(tmp_path)
    assert (before, after) == (list(range(stop)), list(range(stop // 3 * 3, 12)))
    assert equal(again, whole)
    finished, none = trained(tmp_path)
    assert none == []
    assert equal(finished, whole)
    assert not equal(trained(seed=1)[0], whole)


def test_every_step_moves_the_weights_a_single_one_too():
    model, _ = trained(epochs=1, loader=[next(iter(images()))])
    assert not equal(model, network())


def test_any_seed_is_taken():
    assert equal(trained(seed=10**30, epochs=1)[0], trained(seed=10**30, epochs=1)[0])


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model, loader = network(), images()
    torch.manual_seed(5)
    train(model, loader, lambda step, x, y: F.cross_entropy(model(x), y), "net", 1, lr=1e-2, seed=0, device=CPU)
    assert torch.equal(torch.rand(3), expected)


def test_the_rate_rises_and_falls_and_vectors_do_not_decay():
    assert [_rate(part) for part in (0.025, 0.05, 0.525, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    model = network()
    model[0].bias.requires_grad_(False)
    decayed, others = _groups(model)
    assert [tuple(p.shape) for p in decayed["params"]] == [(8, 4), (3, 8)]
    assert [tuple(p.shape) for p in others["params"]] == [(8,), (8,), (3,)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


class Stream(torch.utils.data.IterableDataset):
    """Images that come one after the other, nobody knows how many."""

    def __iter__(self):
        return iter(images().dataset)


STREAM = torch.utils.data.DataLoader(Stream(), batch_size=8)


@pytest.mark.parametrize("loader", [iter([]), [], (batch for batch in images()), STREAM])
def test_a_loader_without_a_length_is_refused(loader):
    with pytest.raises(VitasError, match="train_loader: expected one with a length of at least 1"):
        trained(loader=loader)


def test_a_loss_that_is_no_number_ends_the_training():
    model = network()
    with pytest.raises(VitasError, match=r"step 0: the loss is nan; try a learning rate below 0\.01"):
        train(model, images(), lambda step, x, y: model(x).sum() * math.nan, "net", 1, lr=1e-2, seed=0, device=CPU)


@pytest.mark.parametrize(
    "content", [b"", b"no state", {"model": {}}, {"epochs": 1, "model": {"x": torch.ones(1)}, "optimizer": {}}]
)
def test_a_file_that_is_no_state_of_this_training_is_refused(content, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "net.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "net.pt")
    with pytest.raises(FileError, match=r"net\.pt: not a state of this training \(.*\); remove it to start anew"):
        trained(tmp_path)


def test_a_state_is_read_from_a_regular_file_only(tmp_path):
    (tmp_path / "net.pt").symlink_to("/dev/zero")
    with pytest.raises(FileError, match=r"net\.pt: cannot be read \(not a regular file\)"):
        trained(tmp_path)
