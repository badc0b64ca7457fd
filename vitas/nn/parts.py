"""The part in use of a parameter, as an attribute shows it: to be read, never to be written to.

Where a narrow subnet is active, `model.pos_embed` is cut out of the whole table, perhaps a copy. What somebody writes into
it, or asks of it for training, would be lost or reach a part only, so it is refused; the whole parameter is a word away.
So is a view of it that a method makes (`pos_embed[:, 0]`); that of a function, `torch.narrow(pos_embed, ...)`, is a plain
tensor, as whatever is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from vitas.errors import VitasError

VIEWS = (
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "expand", "expand_as", "as_strided"),
    *("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "adjoint", "squeeze", "unsqueeze"),
    *("narrow", "select", "diagonal", "unfold", "unbind", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit"),
    *("vsplit", "dsplit", "index_select", "contiguous", "to", "type", "float", "double", "__getitem__"),
)
"""Methods that return a view, or the tensor itself, where they can."""


def _shown(made: Any, part: Part) -> Any:
    """Return what a method made of a part: views refuse as it does."""
    if isinstance(made, (tuple, list)):
        return type(made)(_shown(one, part) for one in made)
    shared = isinstance(made, Tensor) and made.untyped_storage()._cdata == part.untyped_storage()._cdata
    return part_of(made, part.shown_as) if shared else made


def _view(name: str) -> Callable[..., Any]:
    def run(self: Part, *arguments: Any, **named: Any) -> Any:
        return _shown(getattr(super(Part, self), name)(*arguments, **named), self)

    return run


def _view_of(name: str) -> Callable[[Part], Any]:
    return lambda self: _shown(getattr(super(Part, self), name), self)


class Part(Tensor):
    """A tensor that refuses to be written to, as its views do; what is computed from it is a plain tensor, at no cost."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    shown_as: str

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        name = self.shown_as
        raise VitasError(
            f"{name}: the active subnet's part cannot be written to; take the whole,"
            f" get_parameter({name!r}), or activate the largest subnet"
        )

    data = grad = property(_refuse, _refuse)
    is_leaf = property(_refuse)
    requires_grad = property(vars(Tensor.__base__)["requires_grad"].__get__, _refuse)
    register_hook = retain_grad = register_post_accumulate_grad_hook = _refuse
    __setitem__ = __iadd__ = __isub__ = __imul__ = __itruediv__ = _refuse
    for _name in dir(Tensor):
        if _name.endswith("_") and not _name.startswith("_"):  # torch's mark of what writes
            vars()[_name] = _refuse

    for _name in VIEWS:
        vars()[_name] = _view(_name)
    T, mT, H, mH = (property(_view_of(name)) for name in ("T", "mT", "H", "mH"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let a pickle hold a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Tensor:
        """Return a plain copy."""
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def detach(self) -> Part:
        """Return the same numbers, which cannot be written to either."""
        return part_of(super().detach(), self.shown_as)


def part_of(tensor: Tensor, name: str) -> Part:
    """Return a tensor, itself, as one that refuses to be written to; `name` is what errors call it."""
    part: Any = tensor
    part.__class__ = Part
    part.shown_as = name
    return part  # type: ignore[no-any-return]
