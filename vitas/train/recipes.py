"""The published settings for training a superformer and for retraining what was found in it, as plain numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitas.checks import as_count, as_number
from vitas.errors import ChoiceError, shown


@dataclass(frozen=True)
class Recipe:
    """Settings of one training on ImageNet; `dataclasses.replace` makes another.

    Source: public ViTAS code (Su et al., July 2021), configurations and their loader; AdamW, though a file there says SGD.

    Raises:
        ChoiceError: anything but a number where one is due, or one out of range.

    Attributes:
        epochs: Passes over the training images, warm-up included.
        warmup_epochs: Epochs in which the learning rate rises linearly from 0, step by step.
        batch_size: Images in a step, over all devices.
        lr: Largest learning rate of AdamW; falls by a cosine to 0 after the warm-up.
        weight_decay: Decay of AdamW; biases and other parameters of one axis are left out, tokens and positions are not.
        scale: Smallest and largest part of the image that a random crop takes.
        hflip: Probability of a horizontal flip.
        interpolation: How crops are resized.
        auto_augment: RandAugment, in timm's words; None: off.
        color_jitter: Strength of brightness, contrast and saturation changes; None: off.
        random_erasing: Probability that a rectangle (2 to 33 % of the image) is replaced by noise.
        mixup: Alpha of mixup; 0: off.
        cutmix: Alpha of CutMix; 0: off.
        switch_prob: Probability of CutMix where both are on.
        smoothing: Label smoothing.
        drop_path: Stochastic depth of the last block.
        clip_grad: Largest gradient norm; None: not clipped.
        ema_decay: Decay of an average of the weights; None: none kept.
        crop_pct: Part of the resized image that the centre crop takes in tests (resize 256, crop 224).
    """

    epochs: int = 300
    warmup_epochs: int = 5
    batch_size: int = 1024
    lr: float = 1e-3
    weight_decay: float = 0.05
    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    interpolation: str = "bicubic"
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.25
    mixup: float = 0.0
    cutmix: float = 0.0
    switch_prob: float = 0.5
    smoothing: float = 0.1
    drop_path: float = 0.0
    clip_grad: float | None = None
    ema_decay: float | None = None
    crop_pct: float = 224 / 256

    def __post_init__(self) -> None:
        def given(name: str) -> list[str]:
            return [] if getattr(self, name) is None else [name]

        for name in ("epochs", "batch_size"):
            as_count(getattr(self, name), name)
        if not as_count(self.warmup_epochs, "warmup_epochs", least=0) < self.epochs:
            raise ChoiceError(f"warmup_epochs: expected fewer than the {self.epochs} epochs, got {self.warmup_epochs}")
        for name in ("hflip", "random_erasing", "switch_prob", "smoothing", "drop_path", *given("ema_decay")):
            if not 0 <= as_number(getattr(self, name), name) <= 1:
                raise ChoiceError(f"{name}: expected a number in [0, 1], got {shown(getattr(self, name))}")
        for name in ("lr", "crop_pct", *given("clip_grad")):
            if not as_number(getattr(self, name), name) > 0:
                raise ChoiceError(f"{name}: expected a positive number, got {shown(getattr(self, name))}")
        for name in ("weight_decay", "mixup", "cutmix", *given("color_jitter")):
            if as_number(getattr(self, name), name) < 0:
                raise ChoiceError(f"{name}: expected a number of at least 0, got {shown(getattr(self, name))}")
        pair = isinstance(self.scale, (tuple, list)) and len(self.scale) == 2
        if not pair or not 0 < as_number(self.scale[0], "scale") <= as_number(self.scale[1], "scale") <= 1:
            raise ChoiceError(f"scale: expected parts of the image, 0 < smallest <= largest <= 1, got {shown(self.scale)}")

    def lr_factor(self, epoch: float) -> float:
        """Return the learning rate as a part of `lr` after `epoch` epochs (whole or not): linear warm-up, then a cosine."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the parameters in two groups: with weight decay, and without (biases, and all others of one axis)."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                alone = parameter.ndim <= 1 or name.endswith(".bias")
                (others if alone else decayed).append(parameter)
        return [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": self.weight_decay}]

    def to_timm(self, *, img_size: int = 224, num_classes: int = 1000) -> Mapping[str, dict[str, Any] | None]:
        """Return the arguments of timm's functions that make the parts of a training.

        Args:
            img_size: Pixels of the images' side.
            num_classes: Classes, for mixup's targets.

        Returns:
            transform: `timm.data.transforms_factory.transforms_imagenet_train`, since `create_transform` would leave out
            the colour jitter wherever RandAugment is on.
            eval_transform: `timm.data.transforms_factory.transforms_imagenet_eval`.
            mixup: `timm.data.Mixup`; None where neither mixup nor CutMix is on (smooth the labels in the loss then).
            optimizer: `timm.optim.create_optimizer_v2`.
            scheduler: `timm.scheduler.create_scheduler_v2`, to which `updates_per_epoch` is to be added.
        """
        return {
            "transform": {
                "img_size": img_size,
                "scale": self.scale,
                "hflip": self.hflip,
                "interpolation": self.interpolation,
                "auto_augment": self.auto_augment,
                "color_jitter": self.color_jitter,
                "force_color_jitter": self.color_jitter is not None,
                "re_prob": self.random_erasing,
                "re_mode": "pixel",
            },
            "eval_transform": {"img_size": img_size, "interpolation": self.interpolation, "crop_pct": self.crop_pct},
            "mixup": {
                "mixup_alpha": self.mixup,
                "cutmix_alpha": self.cutmix,
                "switch_prob": self.switch_prob,
                "label_smoothing": self.smoothing,
                "num_classes": num_classes,
            }
            if self.mixup or self.cutmix
            else None,
            "optimizer": {
                "opt": "adamw",
                "lr": self.lr,
                "weight_decay": self.weight_decay,
                "param_group_fn": self.param_groups,
            },
            "scheduler": {
                "sched": "cosine",
                "num_epochs": self.epochs - self.warmup_epochs,
                "warmup_epochs": self.warmup_epochs,
                "warmup_lr": 0.0,
                "warmup_prefix": True,
                "min_lr": 0.0,
                "step_on_epochs": False,
            },
        }


SUPERFORMER = Recipe(cutmix=1.0)
"""As the method's authors: CutMix on every batch, erasing, smoothing; no RandAugment, colour jitter, mixup or drop path."""


RETRAIN = Recipe(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, drop_path=0.1)
"""Full augmentation; no mixing, as for the published networks up to 1.3 GMACs."""


RETRAIN_LARGE = replace(RETRAIN, mixup=0.8, cutmix=1.0)
"""As RETRAIN, with mixup and CutMix, as for the published networks of 2.7 and 4.9 GMACs."""
