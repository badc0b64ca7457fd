"""Use an exported Twins subnet as the backbone of an object detector: feature pyramid, Faster R-CNN, COCO's format and mAP.

Trains a superformer to tell shapes apart, exports a subnet of it, trains a detector on that, and draws detection.png. By
default on generated scenes of coloured shapes, in under five minutes on two cores; with --coco on a folder with COCO's own
layout (annotations/instances_train2017.json, train2017/, and the same for val2017):

    python examples/detection.py [--coco FOLDER]
"""

import argparse
import contextlib
import io
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.font_manager import findfont
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, read_image, write_png
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.utils import draw_bounding_boxes, make_grid
from tqdm import tqdm

import vitas

SHAPES = ["circle", "square", "triangle"]
STYLE: dict[str, Any] = {
    "colors": "red",
    "width": 2,
    "font": findfont("DejaVu Sans"),
    "font_size": 14,
    "label_colors": "black",
    "label_background_colors": "white",
    "fill_labels": True,
}


def draw_shape(image: Tensor, kind: int, generator: torch.Generator, least: int, most: int) -> list[int]:
    """Draw a shape of a random colour, place and size into an image (3, H, W); return its box as COCO does: x, y, w, h."""
    side = int(torch.randint(least, most + 1, (), generator=generator))
    left, top = (int(torch.randint(size - side, (), generator=generator)) for size in (image.shape[2], image.shape[1]))
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    mask = [x**2 + y**2 <= 1, torch.ones_like(x, dtype=torch.bool), x.abs() <= (y + 1) / 2][kind]
    colour = torch.rand(3, 1, 1, generator=generator)
    part = image[:, top : top + side, left : left + side]
    part.copy_(torch.where(mask, colour, part))
    return [left, top, side, side]


def background(size: int, generator: torch.Generator) -> Tensor:
    """Return a grey image with noise, (3, size, size)."""
    return torch.rand(1, generator=generator) * 0.6 + 0.2 + 0.1 * torch.randn(3, size, size, generator=generator)


def write_scenes(folder: Path, split: str, number: int, size: int, seed: int) -> None:
    """Write scenes of one to four shapes and their boxes in COCO's layout."""
    generator = torch.Generator().manual_seed(seed)
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(number):
        image = background(size, generator)
        for _ in range(int(torch.randint(1, 5, (), generator=generator))):
            kind = int(torch.randint(len(SHAPES), (), generator=generator))
            box = draw_shape(image, kind, generator, size // 6, size // 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": kind + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        name = f"{image_id:06}.png"
        write_png((image.clamp(0, 1) * 255).byte(), str(folder / split / name))
        images.append({"id": image_id, "file_name": name, "height": size, "width": size})
    categories = [{"id": kind + 1, "name": name} for kind, name in enumerate(SHAPES)]
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and boxes of a folder in COCO's layout; classes are numbered from 1, 0 being the background."""

    def __init__(self, folder: Path, split: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(folder / "annotations" / f"instances_{split}.json")
        self.images = folder / split
        self.ids = sorted(self.coco.getImgIds())
        self.categories = sorted(self.coco.getCatIds())
        self.names = ["background", *(category["name"] for category in self.coco.loadCats(self.categories))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image_id = self.ids[index]
        image = read_image(str(self.images / self.coco.loadImgs(image_id)[0]["file_name"]), ImageReadMode.RGB)
        objects = self.coco.loadAnns(self.coco.getAnnIds(image_id, iscrowd=False))
        objects = [one for one in objects if min(one["bbox"][2:]) > 0]
        boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([self.categories.index(one["category_id"]) + 1 for one in objects], dtype=torch.int64)
        return image / 255, {"boxes": boxes, "labels": labels, "image_id": torch.tensor(image_id)}


def loader(scenes: Scenes, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, dict[str, Tensor]]]:
    """Return batches as a list of images and a list of targets, since images differ in size."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        scenes, batch_size, shuffle, collate_fn=lambda batch: tuple(zip(*batch, strict=True)), generator=generator
    )


def search_backbone(size: int, steps: int) -> nn.Module:
    """Train a superformer to tell single shapes apart and return the best of ten subnets of at most 60 % of the cost."""
    generator = torch.Generator().manual_seed(0)

    def batch(number: int) -> tuple[Tensor, Tensor]:
        images = torch.stack([background(size, generator) for _ in range(number)])
        labels = torch.randint(len(SHAPES), (number,), generator=generator)
        for image, label in zip(images, labels, strict=True):
            draw_shape(image, int(label), generator, size // 3, size - 1)
        return (images - 0.5) / 0.25, labels

    model = vitas.create_superformer("twins_micro", num_classes=len(SHAPES), img_size=size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in tqdm(range(steps), desc="superformer", unit="step", mininterval=1):
        images, labels = batch(16)
        vitas.sample_subnet(model, generator=generator)  # the extra line
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    model.eval()
    space = vitas.search_space(model)
    most = 0.6 * vitas.count_flops(model, space.largest()).total
    images, labels = batch(256)
    scores: dict[vitas.Subnet, float] = {}
    while len(scores) < 10:
        subnet = space.sample(generator)
        if vitas.count_flops(model, subnet).total > most:
            continue
        with vitas.use_subnet(model, subnet), torch.no_grad():
            scores[subnet] = (model(images).argmax(1) == labels).float().mean().item()
    best = max(scores, key=lambda subnet: scores[subnet])
    macs = vitas.count_flops(model, best).total
    print(f"subnet: {macs / 1e6:.1f} M multiply-adds, tells {scores[best]:.0%} of single shapes apart")
    return vitas.export_subnet(model, best)


class Pyramid(nn.Module):
    """A feature pyramid over the maps of a plain vitas network; torchvision's detectors take it as their backbone."""

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.fpn = FeaturePyramidNetwork([stage["num_chs"] for stage in body.feature_info], out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, norm=True, intermediates_only=True)
        return self.fpn({str(level): features for level, features in enumerate(maps)})


def detector(body: nn.Module, classes: int, size: int) -> FasterRCNN:
    """Return a small Faster R-CNN on the pyramid of `body`."""
    backbone = Pyramid(body, out_channels=64)
    strides = [stage["reduction"] for stage in body.feature_info]
    anchors = AnchorGenerator(tuple((4 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size=5, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=2 * size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=256,
        rpn_pre_nms_top_n_test=128,
        rpn_post_nms_top_n_train=128,
        rpn_post_nms_top_n_test=64,
        rpn_batch_size_per_image=64,
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * 25, 128),
        box_predictor=FastRCNNPredictor(128, classes),
        box_batch_size_per_image=64,
    )


def train(model: FasterRCNN, scenes: Scenes, steps: int, batch_size: int) -> None:
    """Run an ordinary training loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    model.train()
    batches = loader(scenes, batch_size, shuffle=True)
    progress = tqdm(total=steps, desc="detector", unit="step", mininterval=1)
    for _ in range(math.ceil(steps / len(batches))):
        for images, targets in batches:
            if progress.n == steps:
                break
            sum(model(list(images), list(targets)).values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            progress.update()
    progress.close()


@torch.no_grad()
def mean_average_precision(model: FasterRCNN, scenes: Scenes) -> float:
    """Return COCO's mAP: precision averaged over recall, classes and IoU thresholds 0.5 to 0.95."""
    model.eval()
    found = []
    for images, targets in loader(scenes, 16, shuffle=False):
        for output, target in zip(model(list(images)), targets, strict=True):
            output["boxes"][:, 2:] -= output["boxes"][:, :2]
            for box, score, label in zip(*(output[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
                found.append(
                    {
                        "image_id": int(target["image_id"]),
                        "category_id": scenes.categories[label - 1],
                        "bbox": box,
                        "score": score,
                    }
                )
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        scored = COCOeval(scenes.coco, scenes.coco.loadRes(found), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return float(scored.stats[0])


@torch.no_grad()
def picture(model: FasterRCNN, scenes: Scenes, path: Path, number: int = 8, size: int = 256) -> None:
    """Draw the boxes found with a score of at least a half into some images."""
    model.eval()
    drawn = []
    for index in range(min(number, len(scenes))):
        image = scenes[index][0]
        output = model([image])[0]
        sure = output["scores"] >= 0.5
        image = F.interpolate(image[None], (size, size), mode="bilinear")[0]
        scale = torch.tensor([size / scenes[index][0].shape[axis] for axis in (2, 1, 2, 1)])
        names = [scenes.names[label] for label in output["labels"][sure]]
        if names:
            image = draw_bounding_boxes(image, output["boxes"][sure] * scale, names, **STYLE)
        drawn.append(image)
    write_png((make_grid(torch.stack(drawn), nrow=4) * 255).byte(), str(path))


def main() -> None:
    """Search, train, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, help="folder with COCO's annotations and images; default: generated scenes")
    parser.add_argument("--size", type=int, default=96, help="shorter side of an image in pixels")
    parser.add_argument("--superformer-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the detector")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--picture", type=Path, default=Path("detection.png"))
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.coco or Path(scratch)
        if options.coco is None:
            write_scenes(folder, "train2017", 800, options.size, seed=1)
            write_scenes(folder, "val2017", 100, options.size, seed=2)
        scenes, held_out = Scenes(folder, "train2017"), Scenes(folder, "val2017")
        body = search_backbone(48, options.superformer_steps)  # features have any size
        model = detector(body, len(scenes.names), options.size)
        before = mean_average_precision(model, held_out)
        train(model, scenes, options.steps, options.batch_size)
        after = mean_average_precision(model, held_out)
        picture(model, held_out, options.picture)
    print(f"mAP on {len(held_out)} held-out scenes: {before:.3f} before training, {after:.3f} after")
    print(f"{options.picture} drawn; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
