"""What fixed seeds give: subnets, counts, checkpoint keys, outputs, searches.

A change of the code that should change none of them is checked against `tests/data/golden.json`, written before it:

    python -m tests.golden           # compare
    python -m tests.golden --write   # write what the present code gives

The folder `tests/data/files` holds files that an earlier version wrote; they load as long as their format is promised, and
are never written again. `python -m tests.golden --files FOLDER` writes such a set.
"""

import argparse
import hashlib
import itertools
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vitas
from vitas import Subnet

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden.json"
FILES = DATA / "files"
PATTERNS = ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"]


def random_weights(model: nn.Module) -> nn.Module:
    """Give every tensor numbers of its own name, so that the order in which layers are built does not matter.

    The stream of `RandomState` is the same in every version of numpy.
    """
    for name, tensor in model.state_dict().items():
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.dtype)
        if not tensor.is_floating_point():
            continue
        if "norm" in name or tensor.ndim < 2:
            noise = (0.0 if name.endswith("bias") else 1.0) + 0.2 * noise
        elif "token" not in name and "pos_embed" not in name:
            noise = noise / tensor[0].numel() ** 0.5
        tensor.copy_(noise)
    return model.eval()


def pictures(channels: int, *size: int, n: int = 2) -> torch.Tensor:
    """Return the images that outputs are of, (n, channels, height, width)."""
    return torch.from_numpy(np.random.RandomState(7).standard_normal((n, channels, *size)))


# -- what is kept of a thing -------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Return a short name of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def of_subnets(subnets: Iterable[Subnet]) -> list[str]:
    return [hashlib.sha256(subnet.to_json().encode()).hexdigest()[:16] for subnet in subnets]


def of_state(model: nn.Module) -> str:
    """Keys, shapes and types of the tensors, in their order."""
    return digest([(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()])


def of_modules(model: nn.Module) -> str:
    """Paths and classes of the modules: what a pickle names."""
    return digest([(name, f"{type(part).__module__}.{type(part).__qualname__}") for name, part in model.named_modules()])


@torch.no_grad()
def of_output(model: nn.Module, images: torch.Tensor) -> list[float]:
    """Two sums of the outputs, one of sizes and one that depends on the places."""
    out = model.double().eval()(images).flatten()
    weights = torch.arange(len(out), dtype=torch.float64).cos()
    return [out.abs().sum().item(), (out * weights).sum().item()]


def of_space(model: nn.Module) -> dict[str, Any]:
    space = vitas.search_space(model)
    described = [
        (name, [float(v) for v in choice.values], [float(p) for p in choice.p]) for name, choice in space.choices.items()
    ]
    runs = [choice.channels().tolist() for choice in space.choices.values() if isinstance(choice, vitas.Dim)]
    return {"choices": digest(described), "channels": digest(runs), "size": str(space.size)}


def of_counts(model: nn.Module, subnets: list[Subnet]) -> dict[str, Any]:
    space, costs = vitas.search_space(model), vitas.cost_model(model)
    codes = np.stack([space.encode(subnet) for subnet in subnets])
    counts = [vitas.count_flops(model, subnet) for subnet in subnets]
    found = {"flops": [count.total for count in counts], "params": [vitas.count_params(model, subnet) for subnet in subnets]}
    assert found == {"flops": costs.flops(codes).tolist(), "params": costs.params(codes).tolist()}
    operators = [sorted(count.by_operator.items()) for count in counts]
    return {**found, "operators": digest(operators), "modules": digest([sorted(c.by_module.items()) for c in counts])}


def of_exports(model: nn.Module, subnets: list[Subnet], images: torch.Tensor, classes: bool = True) -> list[dict[str, Any]]:
    """Exports of subnets; `classes`: also what belongs to vitas alone, that is not for networks of timm."""
    found = []
    for subnet in subnets:
        export = vitas.export_subnet(model, subnet)
        one: dict[str, Any] = {"state": of_state(export)}
        if classes:
            one["modules"] = of_modules(export)
            with tempfile.TemporaryDirectory() as folder:
                vitas.save_subnet(export, Path(folder) / "net")
                one["config"] = digest(json.loads((Path(folder) / "net" / "config.json").read_text()))
        found.append({**one, "output": of_output(export, images)})
    return found


def draws(model: nn.Module, n: int, seed: int = 0) -> list[Subnet]:
    generator = torch.Generator().manual_seed(seed)
    return [vitas.sample_subnet(model, generator=generator, activate=False) for _ in range(n)]


def everything(
    model: nn.Module, images: torch.Tensor, *, n: int = 6, exports: int = 3, classes: bool = True
) -> dict[str, Any]:
    """All that is kept of a model: its space, draws, counts and a few exports (largest, smallest, random ones)."""
    space = vitas.search_space(model)
    state = of_state(model)
    subnets = [space.largest(), space.smallest(), *draws(model, n)]
    sampler = vitas.SubnetSampler(model, flops=("40%", "60%"), seed=1)
    budgeted = [sampler.sample(step, activate=False) for step in (0, 1, 2, 1000)]
    sandwiches = [list(vitas.train.sandwich(model, 2, step=step)) for step in (0, 1)]
    random_weights(model)
    return {
        "space": of_space(model),
        "state": state,
        "draws": of_subnets(subnets),
        "budgeted": of_subnets(budgeted),
        "sandwich": of_subnets(itertools.chain(*sandwiches)),
        "codes": digest([space.encode(subnet).tolist() for subnet in subnets]),
        "counts": of_counts(model, subnets),
        "exports": of_exports(model, [*subnets[: exports - 1], budgeted[0]], images, classes),
    }


# -- the cases ---------------------------------------------------------------------------------------------------------


def vitas_deit() -> dict[str, Any]:
    """Counted whole, without memory for weights; its exports are of a space with smaller images and fewer blocks."""
    with torch.device("meta"):
        whole = vitas.create_superformer("vitas_deit")
    subnets = draws(whole, 4)
    published = [vitas.published_subnet(name) for name in ("vitas_a", "vitas_b", "vitas_c", "vitas_e")]
    few = vitas.create_superformer("vitas_deit", num_classes=10, img_size=64, patch_size=[16, 32], depth=[1, 2, 3])
    return {
        "space": of_space(whole),
        "state": of_state(whole),
        "draws": of_subnets(subnets),
        "counts": of_counts(whole, [*subnets, *published]),
        "published": [vitas.count_flops(whole, subnet, convention="vitas").total for subnet in published],
        "few": everything(few, pictures(3, 64, 64)),
    }


def deit_micro() -> dict[str, Any]:
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
    found = everything(model, pictures(3, 16, 16), exports=6)
    both = vitas.SubnetSampler(model, flops=("30%", "50%"), params=("20%", "60%"), seed=3)
    found["both"] = of_subnets(both.sample(step, activate=False) for step in range(20))
    found["counted"] = str(vitas.count_subnets(model, flops=("40%", "60%")))
    found["depth law"] = vitas.train.depth_law_for(model, flops="20%")
    found["score"] = vitas.zero_cost(model, pictures(3, 16, 16).float())
    return found


def deit_options() -> dict[str, Any]:
    """A space with the other arguments: distilled, LayerScale, mean pooling, fixed head width, a gene per slot."""
    found = {}
    for name, options in {
        "distilled": {"distilled": True, "init_values": 0.1},
        "mean": {"global_pool": "avg", "private": None, "head_dim": 16, "qk_norm": True},
        "slots": {"shift": False, "mlp_ratio": [1, 2.5], "depth_p": 0.3},
        "value": {"private": "v", "global_pool": "avg", "fc_norm": False},
    }.items():
        model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16, **options)
        found[name] = everything(model, pictures(3, 16, 16), n=2)
    return found


def autoformer() -> dict[str, Any]:
    model = vitas.create_superformer("autoformer_tiny", num_classes=10, img_size=32, depth=range(2, 5))
    return everything(model, pictures(3, 32, 32))


def twins_micro() -> dict[str, Any]:
    model = vitas.create_superformer("twins_micro", num_classes=10, img_size=32)
    found = everything(model, pictures(3, 32, 32), exports=6)
    pairs = vitas.create_superformer("twins_micro", num_classes=10, img_size=32, depths=[2, 2, range(2, 7, 2), 2])
    return {**found, "pairs": everything(pairs, pictures(3, 36, 28))}


def vitas_twins() -> dict[str, Any]:
    """Counted whole, without memory for weights; its exports are of a space with fewer blocks."""
    with torch.device("meta"):
        whole = vitas.create_superformer("vitas_twins", num_classes=10, img_size=64)
    subnets = draws(whole, 4)
    few = vitas.create_superformer("vitas_twins", num_classes=10, img_size=64, depths=[[1, 2], [1, 2], [1, 2], 1])
    found = {
        "space": of_space(whole),
        "state": of_state(whole),
        "draws": of_subnets(subnets),
        "counts": of_counts(whole, subnets),
    }
    return {**found, "few": everything(few, pictures(3, 64, 64, n=1), n=2, exports=2)}


def plain_presets() -> dict[str, Any]:
    with torch.device("meta"):
        deit = vitas.create_superformer("deit_small", img_size=224)
        twins = vitas.create_superformer("twins_svt_small", img_size=224)
    return {
        name: {"state": of_state(model), "flops": vitas.count_flops(model).total, "params": vitas.count_params(model)}
        for name, model in {"deit_small": deit, "twins_svt_small": twins}.items()
    }


def patterns() -> dict[str, Any]:
    """Both families under every pattern, both sides where a pattern has two."""
    found = {}
    for sharing in PATTERNS:
        deit = vitas.create_superformer("deit_micro", num_classes=5, img_size=16, sharing=sharing, depth=[2, 3])
        twins = vitas.create_superformer(
            "twins_micro", num_classes=5, img_size=32, sharing=sharing, depths=[1, [1, 2], 1, 1]
        )
        for model, images in ((deit, pictures(3, 16, 16)), (twins, pictures(3, 32, 32))):
            name = f"{sharing} {type(model).__name__}"
            found[name] = everything(model, images, n=1, exports=2)
            subnet = draws(model, 1, seed=5)[0]
            if sharing == "bilateral":
                exports = [vitas.export_subnet(model, subnet, side=side) for side in ("left", "right")]
                found[name]["sides"] = [of_output(export, images) for export in exports]
            if sharing in ("bilateral", "cyclic-paired"):
                vitas.activate_subnet(model, subnet)
                found[name]["complements"] = of_subnets(vitas.train.complementary(model))
    return found


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 36, "depth": 3, "num_heads": 3, "num_classes": 5}
    return random_weights(VisionTransformer(**{**sizes, **options}))


def timm_twins() -> nn.Module:
    from timm.models.twins import Twins

    sizes = {"embed_dims": [16, 32], "num_heads": [2, 4], "mlp_ratios": [2, 2], "depths": [2, 2], "sr_ratios": [2, 1]}
    return random_weights(Twins(img_size=16, wss=(2, 2), num_classes=5, **sizes))


def wrapped_vit() -> dict[str, Any]:
    images = pictures(3, 16, 16)
    whole = vitas.wrap(timm_vit(), embed_dim="auto", depth="auto")
    ordered = vitas.wrap(timm_vit(), order="magnitude")
    blocks = vitas.wrap(timm_vit(init_values=0.1, reg_tokens=2), num_heads=[1, 3], mlp_ratio=["25%", "100%"], blocks=[0, 2])
    return {
        name: everything(model, images, classes=False)
        for name, model in {"whole": whole, "ordered": ordered, "blocks": blocks}.items()
    }


def wrapped_twins() -> dict[str, Any]:
    return everything(vitas.wrap(timm_twins(), embed_dim="auto", depth="auto"), pictures(3, 16, 16), classes=False)


def searches() -> dict[str, Any]:
    """Sixty evaluations of a score that costs nothing: with one objective, and with two inside a budget."""
    found = {}
    deit = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
    twins = vitas.create_superformer("twins_micro", num_classes=10, img_size=32)
    for name, model, options in (
        ("deit", deit, {}),
        ("deit, a budget", deit, {"flops": ("40%", "60%"), "seed": 3}),
        ("twins, two objectives", twins, {"params": "50%", "objectives": {"accuracy": "max", "flops": "min"}}),
    ):
        middle = vitas.count_params(model, vitas.search_space(model).largest()) / 3

        def score(model: nn.Module, middle: float = middle) -> float:
            return -abs(vitas.count_params(model) - middle)

        result = vitas.evolve(model, score, population=12, generations=5, progress=False, **options)
        found[name] = {
            "history": digest([(one.subnet.to_json(), sorted(one.scores.items())) for one in result.history]),
            "evaluations": len(result.history),
            "best": json.loads(result.best.to_json()),
            "front": of_subnets(sorted((one.subnet for one in result.front), key=Subnet.to_json)),
        }
    return found


CORE: list[Callable[[], dict[str, Any]]] = [
    vitas_deit, deit_micro, deit_options, autoformer, twins_micro, vitas_twins, plain_presets, patterns,
]  # fmt: skip
OF_EXTRAS: list[Callable[[], dict[str, Any]]] = [wrapped_vit, wrapped_twins, searches]
CASES = {case.__name__: case for case in [*CORE, *OF_EXTRAS]}


def differences(got: Any, expected: Any, path: str = "") -> Iterable[str]:
    """Name every place where two results differ; floats may differ by 1e-6 of their size."""
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in got if key not in expected)]:
            yield from differences(got.get(key), expected.get(key), f"{path}/{key}")
    elif isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            yield from differences(a, b, f"{path}/{i}")
    elif isinstance(got, float) and isinstance(expected, float):
        if abs(got - expected) > 1e-6 * abs(expected):
            yield f"{path}: {got!r}, expected {expected!r}"
    elif got != expected:
        yield f"{path}: {got!r}, expected {expected!r}"


# -- files that an earlier version wrote -------------------------------------------------------------------------------


def superformer(kind: str) -> nn.Module:
    """Build the superformer, or wrapped model, whose files are kept."""
    if kind == "deit":
        sizes = {"embed_dim": [16, 24], "depth": [1, 2], "qkv_dim": [16, 32], "mlp_dim": [16, 32]}
        return vitas.create_superformer("deit_micro", num_classes=5, img_size=16, **sizes)
    if kind == "twins":
        widths = {"embed_dims": [[8, 16], [16, 24]], "qkv_dims": [[8, 16], [16, 24]], "mlp_dims": [[8, 16], [16, 32]]}
        sizes = {"depths": [[1, 2], [1, 2]], "num_heads": [2, [2, 4]], "wss": [4, 2], "sr_ratios": [2, 1], **widths}
        return vitas.create_superformer("twins_micro", num_classes=5, img_size=16, **sizes)
    original = timm_vit(embed_dim=24, depth=2) if kind == "timm_vit" else timm_twins()
    return vitas.wrap(original, embed_dim="auto", depth="auto")


KINDS = ["deit", "twins", "timm_vit", "timm_twins"]


def write_files(folder: Path) -> None:
    """Write a file of each kind, and what the networks in them give for `pictures`."""
    outputs = {}
    folder.mkdir(parents=True)
    for kind in KINDS:
        model = random_weights(superformer(kind))
        subnet = draws(model, 1, seed=2)[0]
        export = vitas.export_subnet(model, subnet)
        vitas.save_subnet(export, folder / kind)
        vitas.save_superformer(model, folder / f"{kind}.safetensors")
        with torch.no_grad():
            outputs[kind] = {"subnet": json.loads(subnet.to_json()), "output": export(pictures(3, 16, 16).float()).tolist()}
    (folder / "outputs.json").write_text(json.dumps(outputs, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all of them by default")
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name}")
    parser.add_argument("--files", type=Path, help="write files of each kind into a new folder")
    options = parser.parse_args()
    if options.files:
        write_files(options.files)
        return
    expected = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    got = {name: json.loads(json.dumps(CASES[name]())) for name in options.cases or CASES}
    for line in differences(got, {name: expected.get(name) for name in got}):
        print(line)
    if options.write:
        GOLDEN.write_text(json.dumps({**expected, **got}, indent=1) + "\n")


if __name__ == "__main__":
    main()
