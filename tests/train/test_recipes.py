import dataclasses
import math

import pytest
import torch
from torch import nn

from vitas import ChoiceError, create_superformer
from vitas.train.recipes import RETRAIN, RETRAIN_LARGE, SUPERFORMER, Recipe


def test_numbers_are_those_of_the_public_configurations():
    for recipe in (SUPERFORMER, RETRAIN, RETRAIN_LARGE):
        assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size) == (300, 5, 1024)
        assert (recipe.lr, recipe.weight_decay, recipe.smoothing, recipe.random_erasing) == (1e-3, 0.05, 0.1, 0.25)
        assert (recipe.clip_grad, recipe.ema_decay, recipe.interpolation, recipe.crop_pct) == (None, None, "bicubic", 0.875)
    mixing = {(recipe.mixup, recipe.cutmix): recipe for recipe in (SUPERFORMER, RETRAIN, RETRAIN_LARGE)}
    assert list(mixing) == [(0.0, 1.0), (0.0, 0.0), (0.8, 1.0)]
    assert (SUPERFORMER.auto_augment, SUPERFORMER.color_jitter, SUPERFORMER.drop_path) == (None, None, 0.0)
    assert (RETRAIN.auto_augment, RETRAIN.color_jitter, RETRAIN.drop_path) == ("rand-m9-mstd0.5-inc1", 0.4, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RETRAIN.lr = 1.0


def test_the_learning_rate_rises_from_0_and_falls_to_0():
    factors = [SUPERFORMER.lr_factor(epoch) for epoch in (0, 2.5, 5, 5 + 295 / 2, 300, 301)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert SUPERFORMER.lr_factor(100) == pytest.approx((1 + math.cos(math.pi * 95 / 295)) / 2)


def test_biases_and_norms_do_not_decay_but_tokens_and_positions_do():
    model = create_superformer("deit_micro", num_classes=3, img_size=8)
    groups = SUPERFORMER.param_groups(model)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    plain, decayed = ({name_of[parameter] for parameter in group["params"]} for group in groups)
    assert plain | decayed == set(name_of.values())
    assert not plain & decayed
    assert plain == {name for name in name_of.values() if name.endswith("bias") or "norm" in name}
    assert {"cls_token.2", "pos_embed.4", "head.weight"} <= decayed
    model.head.weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in SUPERFORMER.param_groups(model)) == len(name_of) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs: expected a positive int, got -1"),
        ({"epochs": "300"}, "epochs: expected a positive int, got '300'"),
        ({"batch_size": 0.5}, "batch_size: expected a positive int, got 0.5"),
        ({"warmup_epochs": -1}, "warmup_epochs: expected an int of at least 0, got -1"),
        ({"warmup_epochs": 300}, "warmup_epochs: expected fewer than the 300 epochs, got 300"),
        ({"smoothing": 2.0}, r"smoothing: expected a number in \[0, 1\], got 2.0"),
        ({"hflip": "often"}, "hflip: expected an int or a float, got 'often'"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": math.nan}, "lr: expected an int or a float, got nan"),
        ({"crop_pct": 0}, "crop_pct: expected a positive number, got 0"),
        ({"cutmix": None}, "cutmix: expected an int or a float, got None"),
        ({"clip_grad": 0.0}, "clip_grad: expected a positive number, got 0.0"),
        ({"ema_decay": 5.0}, r"ema_decay: expected a number in \[0, 1\], got 5.0"),
        *(({name: 1.1}, rf"{name}: expected a number in \[0") for name in ("random_erasing", "switch_prob", "drop_path")),
        *(({name: -0.1}, f"{name}: expected a number of at least 0") for name in ("weight_decay", "mixup", "color_jitter")),
        ({"scale": 0.5}, "scale: expected parts of the image, .* <= 1, got 0.5"),
        ({"scale": (0.5, 0.08)}, r"scale: expected parts of the image, .* got \(0.5, 0.08\)"),
        ({"scale": (0.5, 2.0)}, r"scale: expected .* got \(0.5, 2.0\)"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ChoiceError, match=message):
        Recipe(**change)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestTimm:
    @pytest.mark.parametrize("recipe", [SUPERFORMER, RETRAIN, RETRAIN_LARGE], ids=["superformer", "retrain", "large"])
    def test_timm_takes_the_arguments(self, recipe):
        pytest.importorskip("timm")
        from timm.data import Mixup, transforms_factory
        from timm.optim import create_optimizer_v2

        arguments = recipe.to_timm(img_size=32, num_classes=3)
        transform = transforms_factory.transforms_imagenet_train(**arguments["transform"])
        names = [type(step).__name__ for step in transform.transforms]
        assert ("RandAugment" in names) == (recipe is not SUPERFORMER)
        assert ("ColorJitter" in names) == (recipe is not SUPERFORMER)
        if recipe is not SUPERFORMER:
            assert names.index("RandAugment") < names.index("ColorJitter")
        erasing = transform.transforms[names.index("RandomErasing")]
        assert (erasing.probability, erasing.min_area) == (0.25, 0.02)
        assert erasing.max_area == pytest.approx(0.33, abs=0.005)
        evaluation = transforms_factory.transforms_imagenet_eval(**{**arguments["eval_transform"], "img_size": 224})
        assert evaluation.transforms[0].size == 256
        assert evaluation.transforms[1].size == (224, 224)

        model = create_superformer("deit_micro", num_classes=3, img_size=32)
        optimizer = create_optimizer_v2(model, **arguments["optimizer"])
        assert type(optimizer) is torch.optim.AdamW
        assert {(g["lr"], g["weight_decay"], tuple(g["betas"])) for g in optimizer.param_groups} == {
            (1e-3, 0.0, (0.9, 0.999)),
            (1e-3, 0.05, (0.9, 0.999)),
        }
        if arguments["mixup"] is None:
            assert recipe is RETRAIN
            return
        mixup = Mixup(**arguments["mixup"])
        assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.label_smoothing) == (
            recipe.mixup,
            1.0,
            1.0,
            0.1,
        )

    def test_timms_schedule_is_lr_factor(self):
        pytest.importorskip("timm")
        from timm.scheduler import create_scheduler_v2

        per_epoch = 4
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=SUPERFORMER.lr)
        schedule, epochs = create_scheduler_v2(optimizer, **SUPERFORMER.to_timm()["scheduler"], updates_per_epoch=per_epoch)
        assert epochs == 300
        for step in (0, 1, 10, 19, 20, 21, 500, 1199):
            schedule.step_update(step)
            expected = SUPERFORMER.lr * SUPERFORMER.lr_factor(step / per_epoch)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected), step
