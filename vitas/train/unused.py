"""Optimiser steps that leave alone what a step did not use, and unused parameters that nobody has to look for."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from vitas.choice import outside_graphs
from vitas.errors import ChoiceError, is_one_of, one_of, shown


class Hooks:
    """Hooks that can be taken off again."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def skip_unused(optimizer: Optimizer, *, per: str = "element") -> Hooks:
    """Let `optimizer.step()` move, decay and remember only weights that the step used: those whose gradient is not zero.

    Without it a slice of a weight matrix that no subnet of the step used still decays and still follows its old momentum,
    since the gradient of the whole matrix is there, with zeros. A gradient that is zero everywhere becomes None, as
    in one process; with `per="element"` single weights with a zero gradient keep their value and their optimiser state too.

    What a step used is read off the summed gradient, so accumulation and all ranks are in it by themselves. Not told apart:
    a gradient that is exactly zero for another reason (fp16 underflow, a dead unit), and counters that belong
    to a whole tensor (Adam's `step`, and with it the bias correction). Under FSDP2 all ranks have to step together.

    Cost: one copy of the parameters and their optimiser state for the length of the step, and (for all tensors together)
    one wait for the device; measured in docs/benchmarks.md.
    Source: ours.

    Args:
        optimizer: Any optimiser of torch's interface; foreach and fused ones too.
        per: "element", or "tensor" for only the tensors whose gradients are zero everywhere: no copies.

    Returns:
        An object whose `remove()` takes the hooks off.

    Raises:
        ChoiceError: not an optimiser; another word for `per`; from `step()`, where a closure makes the gradients.
    """
    if not hasattr(optimizer, "register_step_pre_hook"):
        raise ChoiceError(f"skip_unused: expected a torch.optim.Optimizer, got {shown(optimizer)}")
    if not is_one_of(["element", "tensor"], per):
        raise ChoiceError(f"per: {one_of(['element', 'tensor'], per)}")
    kept: list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = []  # parameter, mask, value, state

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(argument) for argument in (*args, *kwargs.values())):
            raise ChoiceError("skip_unused: the gradients have to be there before step(), which was given a closure")
        kept.clear()
        for parameter, gradient, used in _with_zeros(p for group in optimizer.param_groups for p in group["params"]):
            if not used:
                parameter.grad = None
            elif per == "element":
                mask = gradient == 0
                state = {key: _local(value).clone() for key, value in _state(optimizer, parameter).items()}
                kept.append((parameter, mask, _local(parameter).detach().clone(), state))

    @torch.no_grad()
    def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, mask, value, state in kept:
            _put_back(_local(parameter), mask, value)
            for key, now in _state(optimizer, parameter).items():
                _put_back(_local(now), mask, state.get(key))
        kept.clear()

    return Hooks(optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))


@torch.no_grad()
def _with_zeros(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor, bool]]:
    """Return the parameters with zeros in their gradient, the gradient (this rank's shard), and whether it has others."""
    parameters = [p for p in parameters if p.grad is not None and not p.grad.is_sparse]
    if not parameters:
        return []
    gradients = [_local(p.grad) for p in parameters if p.grad is not None]
    device = gradients[0].device
    used = torch.stack([gradient.any().to(device) for gradient in gradients])
    full = torch.stack([gradient.all().to(device) for gradient in gradients])
    mesh = next((p.device_mesh for p in parameters if hasattr(p, "device_mesh")), None)
    if mesh is not None:  # a shard of zeros may belong to a tensor that has others
        used = used.to(torch.uint8)
        for group in mesh.get_all_groups():
            dist.all_reduce(used, dist.ReduceOp.MAX, group=group)
    rows = zip(parameters, gradients, used.tolist(), full.tolist(), strict=True)
    return [(p, gradient, bool(any_used)) for p, gradient, any_used, all_used in rows if not (any_used and all_used)]


def _state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the state that has an entry for every weight."""
    state = optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _put_back(now: Tensor, mask: Tensor, before: Tensor | None) -> None:
    if before is None:  # made in this step: a weight that was not used has none yet
        now.masked_fill_(mask, 0)
    else:
        torch.where(mask, before, now, out=now)


def touch_unused(model: nn.Module) -> Hooks:
    """Let every backward pass reach every parameter, so that DistributedDataParallel needs no `find_unused_parameters`.

    What a rank did not use takes part in the averaging with zeros, at no cost but the communication. What no rank used then
    has a gradient of zeros, where `find_unused_parameters=True` leaves None: momentum and decay would move it, so add
    `skip_unused(optimizer, per="tensor")` or `per="element"`. It is needed at all only where blocks may be left out or
    parameters are private; widths alone leave no parameter unused.

    Source: ours; DistributedDataParallel counts undefined gradients as arrived (torch 2.13).

    Args:
        model: A model, before or after DistributedDataParallel wraps it.

    Returns:
        An object whose `remove()` takes the hook off.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return Hooks(inner.register_forward_hook(_touch))


@outside_graphs
def _touch(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return outputs
    leaves, structure = tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not places:
        return outputs
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for i, leaf in zip(places, _Touch.apply(len(places), *(leaves[i] for i in places), *parameters), strict=True):
        leaves[i] = leaf
    return tree_unflatten(leaves, structure)


class _Touch(torch.autograd.Function):
    """Identity on the first n tensors; the others get no gradient, but their hooks fire."""

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.others = len(tensors) - n
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *grads, *[None] * ctx.others
