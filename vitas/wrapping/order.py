"""Which channels stand where: a permutation that keeps a model's function and lets important units serve most widths.

A width uses a run of positions. Any permutation of a Dim's channels, applied to all weights that touch them, keeps the
function of the largest subnet; it decides which channels the smaller widths inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError, VitasError, brief, is_one_of, one_of, shown
from vitas.nn import Elastic
from vitas.nn.layer import Stack
from vitas.space import arguments_of, eval_mode

Scores = Mapping[str, Tensor]
"""By the path of a layer a score of each element of its weight."""


class _Use(NamedTuple):
    """A tensor of which one axis has a place for each unit of a choice: a channel, a head, an MLP unit."""

    units: Choice[Any]
    tensor: Tensor
    axis: int
    scores: Tensor | None  # of the elements, from which the importance of the units is read


# -- scores ------------------------------------------------------------------------------------------------------------


def check_order(order: Any, images: Any) -> None:
    """Refuse anything but an order, and a batch of images that is missing or too much.

    Raises:
        ChoiceError: with the legal values.
    """
    words = ["magnitude", "activation", None]
    if not isinstance(order, Mapping) and not callable(order) and not is_one_of(words, order):
        raise ChoiceError(f"order: {one_of([*words, 'a mapping', 'a function'], order)}")
    if order == "activation" and images is None:
        raise ChoiceError('images: order="activation" runs the model on a batch; give it one')
    if order != "activation" and images is not None:
        raise ChoiceError(f'images: only order="activation" looks at them, got order={shown(order)}')


def scores_of(model: nn.Module, order: Any, images: Any) -> dict[str, Tensor]:
    """Return the scores that an order gives the weights of each linear layer and convolution.

    Args:
        model: The model, before it is wrapped.
        order: "magnitude", "activation", or a function: layer -> what broadcasts to its weight, or None.
        images: A batch, or a tuple of all inputs.

    Raises:
        ChoiceError: scores that do not broadcast, or that are not finite numbers from 0.
    """
    of = by_magnitude if order == "magnitude" else by_activation(model, images) if order == "activation" else order
    scores = {}
    for path, layer in model.named_modules():
        given = of(layer) if isinstance(layer, (nn.Linear, nn.Conv2d)) else None
        if given is not None:
            scores[path] = as_scores(given, f"order: {path}", layer.weight.shape)
            if scores[path].min() < 0:
                raise ChoiceError(f"order: {path}: expected scores of at least 0, got {float(scores[path].min()):g}")
    return scores


def as_scores(given: Any, what: str, shape: tuple[int, ...]) -> Tensor:
    """Return scores in double precision and in this shape, broadcast where they have fewer axes.

    Raises:
        ChoiceError: scores that do not broadcast, or are not finite numbers.
    """
    try:
        scores = torch.as_tensor(given).detach().to("cpu", torch.double).broadcast_to(shape)
    except (RuntimeError, TypeError, ValueError):
        raise ChoiceError(f"{what}: expected scores of shape {shown(tuple(shape))}, got {_brief(given)}") from None
    if not scores.isfinite().all():
        raise ChoiceError(f"{what}: expected finite scores, got {_brief(given)}")
    return scores


def _brief(given: Any) -> str:
    return f"a tensor of shape {shown(tuple(given.shape))}" if isinstance(given, Tensor) else shown(given)


def by_magnitude(layer: nn.Module) -> Tensor:
    """Return the square of each weight.

    Source: channels sorted by the size of their weights, Cai et al. (Once-for-all), arXiv:1908.09791.
    """
    return layer.weight.detach().double().square()  # type: ignore[operator]


@torch.no_grad()
def by_activation(model: nn.Module, images: Any) -> Callable[[nn.Module], Tensor | None]:
    """Return a function: layer -> each weight squared times the mean square of what it reads; None: it is not called.

    Source: |W| times the norm of the activation, Sun et al. (Wanda), arXiv:2306.11695.

    Args:
        model: The model, run once in eval mode.
        images: A batch, or a tuple of all inputs.

    Raises:
        ChoiceError: images that the model does not take.
    """
    inputs = arguments_of(images)
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def note(layer: nn.Module, reads: tuple[Tensor, ...]) -> None:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        squares = reads[0].detach().double().movedim(axis, -1).flatten(0, -2).square()
        sums[layer] = sums.get(layer, 0) + squares.sum(dim=0)
        counts[layer] = counts.get(layer, 0) + len(squares)

    hooks = [part.register_forward_pre_hook(note) for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    try:
        with eval_mode(model):
            model(*inputs)
    except VitasError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ChoiceError(f"images: the model does not take them ({brief(error)})") from error
    finally:
        for hook in hooks:
            hook.remove()

    def score(layer: nn.Module) -> Tensor | None:
        if layer not in sums:
            return None
        weight, mean = by_magnitude(layer), sums[layer] / counts[layer]
        if isinstance(layer, nn.Conv2d):
            each = mean.view(layer.groups, 1, -1)  # the channels that a group reads
            mean = each.expand(-1, layer.out_channels // layer.groups, -1).flatten(0, 1)[..., None, None]
        return weight * mean

    return score


# -- permutations ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def put_in_order(model: nn.Module, scores: Scores, given: Mapping[str, Any]) -> None:
    """Permute heads, MLP units and channels so that the important ones serve the most widths.

    The importance of a unit is what it is given, or its share of the scores of each linear layer and convolution that
    reads or writes it, summed over these layers. Positions are ranked by the probability that a width uses them, then by
    how small those widths are: in cyclic sharing all positions serve nearly as many widths, so there the rank mostly says
    that the smallest widths get the most important units.

    Source: ours.

    Args:
        model: A model whose searchable Dims are those of elastic layers.
        scores: Of weights, by the path of their layer.
        given: By the name of a choice the importance of each unit.

    Raises:
        ChoiceError: scores that are not one finite number for each unit.
    """
    uses: dict[Choice[Any], list[_Use]] = {}
    dims: dict[Choice[Any], Dim] = {}
    for path, module in model.named_modules():
        for dim, use in _uses_in(module, scores.get(path)):
            uses.setdefault(use.units, []).append(use)
            dims[use.units] = dim
    for units, at in uses.items():
        if units.name is not None and units.name in given:
            importance = _one_for_each(given[units.name], f"order: {units.name}", units.largest)
        elif any(use.scores is not None for use in at):
            importance = torch.stack([_shares(use.scores, use.axis) for use in at if use.scores is not None]).sum(dim=0)
        else:
            continue
        order = torch.empty(units.largest, dtype=torch.long)
        order[_positions(dims[units], units.largest)] = torch.argsort(importance, descending=True, stable=True)
        for use in at:
            use.tensor.copy_(use.tensor.index_select(use.axis, order.to(use.tensor.device)))


def check_importance(given: Mapping[str, Any], units: Sequence[Dim]) -> None:
    """Refuse what is given for no choice, or not for each unit of it, before anything is changed.

    Raises:
        ChoiceError: a name of no such choice, scores that are not one finite number for each unit.
    """
    sizes = {dim.name: dim.largest for dim in units}
    for name, scores in given.items():
        if name not in sizes:
            raise ChoiceError(f"order: {one_of(sorted(filter(None, sizes)), name)}")
        _one_for_each(scores, f"order: {name}", sizes[name])


def _one_for_each(given: Any, what: str, units: int) -> Tensor:
    try:
        length = tuple(given.shape) if isinstance(given, Tensor) else np.shape(given)
    except ValueError:  # lists of different lengths
        length = ()
    if length != (units,):
        raise ChoiceError(f"{what}: expected {units} scores, one for each unit, got {_brief(given)}")
    return as_scores(given, what, (units,))


def _uses_in(module: nn.Module, scores: Tensor | None) -> Iterator[tuple[Dim, _Use]]:
    """Yield every axis of a layer's own parameters that a searchable Dim counts."""
    if not isinstance(module, Elastic):
        return
    for name, dims in module.axes().items():
        if (tensor := module.stored(name)) is None or not tensor.numel():  # such as no register tokens
            continue
        own, axis = scores if name == "weight" else None, 0
        for dim in dims:
            if isinstance(dim, Stack):  # each part is permuted alike
                tensor = torch.unflatten(tensor, axis, (dim.parts, -1))
                own = None if own is None else torch.unflatten(own, axis, (dim.parts, -1))
                axis, dim = axis + 1, dim.dim
            if dim is not None and not dim.fixed:
                (units,) = dim.bases
                shape = (*tensor.shape[:axis], units.largest, -1, *tensor.shape[axis + 1 :])
                yield dim, _Use(units, tensor.view(shape), axis, None if own is None else own.reshape(shape))
            axis += 1


def _shares(scores: Tensor, axis: int) -> Tensor:
    """Return the share of each unit, which stand along an axis, in the scores of all, (units,)."""
    ahead = " ".join(f"axis{number}" for number in range(axis))
    each = rearrange(scores, f"{ahead} unit ... -> unit ({ahead} ...)").sum(dim=1)
    return each / each.sum().clamp_min(torch.finfo(torch.double).tiny)


def _positions(dim: Dim, units: int) -> Tensor:
    """Return the positions of a Dim's units, those that serve the most widths first."""
    width = dim.largest // units
    often, small = np.zeros(units), np.zeros(units)
    for runs in dim.sides:
        for (start, length), p in zip(runs, dim.p, strict=True):
            run = np.arange(start // width, (start + length) // width) % units
            often[run] += p
            small[run] += p / length
    return torch.from_numpy(np.lexsort((-small, -often.round(9))))
