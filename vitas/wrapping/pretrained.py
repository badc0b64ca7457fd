"""Models of transformers: their exports hold one config, which says the sizes of the subnet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from vitas.wrapping.model import Model, Stage
from vitas.wrapping.rows import Row


class Pretrained(Model):
    """A model of transformers; its own config, and what it saves by `save_pretrained`, are the whole model's."""

    def export(self) -> nn.Module:
        """Return the library's model of the active subnet; its config says each size that one number can say."""
        plain: Any = super().export()
        configs = {type(config): config for config in _configs(plain.config)}
        for part in plain.modules():
            if "config" in vars(part):
                vars(part)["config"] = configs[type(part.config)]  # one for all, as set_attn_implementation wants
        owner: Any = next(part for part in self.modules() if any(isinstance(child, Row) for child in part.children()))
        _say(configs[type(owner.config)], self._stages)
        say_labels(plain, self._remade)
        return plain  # type: ignore[no-any-return]


def say_labels(model: Any, named: Iterable[str]) -> None:
    """Let the config of a model with a classifier, one of the layers `named`, count the labels that this classifier has."""
    if "num_labels" in vars(model):
        layers = [model._modules.get(name) for name in named]
        classes = _one(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
        if classes is not None and classes != len(model.config.id2label):
            model.config.num_labels = classes
        model.num_labels = model.config.num_labels


def _configs(config: Any) -> Iterator[Any]:
    """Yield a config and those of the towers inside."""
    yield config
    for name in config.sub_configs:
        if (inner := getattr(config, name)) is not None:
            yield from _configs(inner)


def _say(config: Any, stages: Sequence[Stage]) -> None:
    """Write the sizes of the active subnet into a config.

    Where blocks differ, or a size is none that the config has, the whole model's number stays: such a config builds other
    shapes than the weights have, which from_pretrained refuses.
    """
    widths, depths = [stage.width.active for stage in stages], [stage.depth.active for stage in stages]
    blocks = [[block for slot, block in enumerate(stage.blocks) if stage.depth.runs(slot)] for stage in stages]
    heads = [_one(dim.active for block in row for dim, _ in block.heads) for row in blocks]
    channels = [_one(channels for block in row for _, channels in block.heads) for row in blocks]
    hidden = [_one(dim.active for block in row for dim, _ in block.hidden) for row in blocks]
    several = {"embed_dim": widths[0], "num_heads": heads, "depths": depths}
    one = {"num_attention_heads": heads[0], "intermediate_size": hidden[0], "num_hidden_layers": depths[0]}
    fields = vars(config)
    for name, value in {"hidden_size": widths[-1], **(several if "depths" in fields else one)}.items():
        if name in fields and value is not None and None not in (value if isinstance(value, list) else ()):
            setattr(config, name, value)
    h, d = heads[0], channels[0]
    if "depths" not in fields and h is not None and d is not None and h * d != widths[0]:
        config.head_dim = d
    if "mlp_ratio" in fields and None not in hidden:
        _say_ratio(config, widths, hidden)
    if "stage_names" in fields and "depths" not in fields:
        config.stage_names = config.stage_names[: depths[0] + 1]
        config.out_features = config.stage_names[-1:]


def _one(values: Iterable[int]) -> int | None:
    """Return the one value that all are; None where they differ."""
    several = set(values)
    return several.pop() if len(several) == 1 else None


def _say_ratio(config: Any, widths: Sequence[int], hidden: Sequence[Any]) -> None:
    """Write the ratio of hidden width to width, if there is one of the kind that the config holds."""
    gated = bool(vars(config).get("use_swiglu_ffn"))

    def fits(ratio: float) -> bool:
        products = [int(width * ratio) for width in widths]
        built = [(int(product * 2 / 3) + 7) // 8 * 8 for product in products] if gated else products
        return built == list(hidden)

    own = config.mlp_ratio
    exact = hidden[0] / widths[0] * (1.5 if gated else 1)
    config.mlp_ratio = next(filter(fits, (own, type(own)(exact), type(own)(exact + 1e-9))), own)
