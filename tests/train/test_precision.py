"""Automatic mixed precision, gradient checkpointing and averaged weights in the user's own loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.contract import randomize, relative_error
from tests.superformer.test_deit import small
from vitas import active_subnet, export_subnet, sample_subnet, search_space
from vitas.train.distill import distill_loss
from vitas.train.sandwich import sandwich
from vitas.train.unused import skip_unused


def train(model, *, dtype=None, steps=12, after=lambda step: None):
    """Run the sandwich with distillation; return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    skip_unused(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16, init_scale=2.0**10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 8, 8, generator=generator)
    labels = torch.arange(16) % 5
    losses = []
    for step in range(steps):
        teacher = None
        for _ in sandwich(model, 1, step=step, largest_last=False):
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels) if teacher is None else distill_loss(logits.float(), teacher)
            teacher = logits.detach().float() if teacher is None else teacher
            scaler.scale(loss).backward()
            losses.append(loss.item())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        after(step)
    assert not scaler.is_enabled() or scaler.get_scale() == 2.0**10  # no step was left out
    return losses


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_losses_are_finite_and_fall(dtype, checkpointing):
    torch.manual_seed(0)
    model = small()
    model.set_grad_checkpointing(checkpointing)
    losses = train(model, dtype=dtype)
    assert torch.tensor(losses).isfinite().all()
    of_the_largest = losses[::3]
    assert of_the_largest[-1] < of_the_largest[0] - 0.05
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def by_hand(average, model, decay):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            average[name].mul_(decay).add_(parameter, alpha=1 - decay)


EMAS = {
    "torch": lambda model: torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "timm": lambda model: pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.9),
}


@pytest.mark.parametrize("kind", ["torch", pytest.param("timm", marks=pytest.mark.extras)])
def test_an_average_keeps_its_own_subnet_and_exports_the_averaged_weights(kind):
    model = randomize(small())
    ema = EMAS[kind](model)
    inner = ema.module
    subnet = search_space(model).subnet({"depth": 2}, fill="smallest")
    search_space(inner).activate(subnet)
    mean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def after(step):
        if kind == "torch" and step == 0:  # torch's first update copies
            mean.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        else:
            by_hand(mean, model, 0.9)
        if kind == "torch":
            ema.update_parameters(model)
        else:
            ema.update(model)
        assert active_subnet(ema) == subnet  # training activates others in the model

    train(model, after=after)
    for name, parameter in inner.named_parameters():
        torch.testing.assert_close(parameter, mean[name])

    x = torch.randn(3, 2, 8, 8)
    for policy in ("smallest", "random", "largest"):
        chosen = sample_subnet(ema, policy=policy)
        plain = export_subnet(ema, chosen, verify=x)
        reference = copy.deepcopy(model).eval()
        reference.load_state_dict(mean)
        search_space(reference).activate(chosen)
        assert relative_error(plain.eval()(x), reference(x)) < 1e-5
