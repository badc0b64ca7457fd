"""Weights that a hook makes before each forward pass: those of pruning, and of torch's older weight and spectral norm."""

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def made_by_hook(module: nn.Module, name: str) -> Tensor | None:
    """Return a weight as its hook would make it now; None where no hook makes it.

    What the module holds is of its last forward pass: older than the last step of an optimizer, and never renewed where
    another module reads the weight without calling this one.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)  # type: ignore[no-untyped-call, no-any-return]
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)  # type: ignore[no-any-return]
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False)  # an iteration would change its buffers
    return None
