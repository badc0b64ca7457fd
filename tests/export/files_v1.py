"""Files of format version 1 in tests/data/files_v1, and how each was made: `python -m tests.export.files_v1 FOLDER`.

They were written before the descriptions of networks became dataclasses. Do not write them anew: that old ones load is the
point of them. For each network a folder of `save_subnet`, for those of vitas.plain also the pickle of the whole module, for
each superformer a file of `save_superformer`; beside each an input x and the output y that it gave.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vitas
from tests.contract import randomize

FOLDER = Path(__file__).parent.parent / "data" / "files_v1"

DEIT: dict[str, Any] = {"embed_dim": [8, 12], "depth": range(1, 4), "qkv_dim": [8, 16], "mlp_dim": [8, 12]}
RICH: dict[str, Any] = {
    "distilled": True,
    "qk_norm": True,
    "init_values": 0.1,
    "qkv_dim": None,
    "head_dim": 4,
    "drop_path_rate": 0.2,
    "proj_drop_rate": 0.1,
    "attn_drop_rate": 0.1,
    "final_norm_eps": 1e-5,
}
TWINS: dict[str, Any] = {
    "embed_dims": [[6, 8]] * 4,
    "depths": [range(1, 3)] * 4,
    "num_heads": [[1, 2]] * 4,
    "qkv_dims": [[4, 8]] * 4,
    "mlp_dims": [[8, 12]] * 4,
}


def deit(**options: Any) -> nn.Module:
    return vitas.create_superformer("deit_micro", img_size=8, **{"num_classes": 3, **DEIT, **options})


def twins(**options: Any) -> nn.Module:
    return vitas.create_superformer("twins_micro", num_classes=3, img_size=32, **{**TWINS, **options})


def timm_vit() -> nn.Module:
    import timm

    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 16, "patch_size": 8}
    options = {"num_classes": 3, "qk_norm": True, "init_values": 0.1, "reg_tokens": 1, "drop_path_rate": 0.1}
    return vitas.wrap(timm.create_model("vit_tiny_patch16_224", **sizes, **options), embed_dim="auto", depth="auto")


def timm_pooled() -> nn.Module:
    import timm

    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 16, "patch_size": 8, "mlp_ratio": 2}
    return vitas.wrap(timm.create_model("test_vit3", num_classes=3, **sizes), embed_dim="auto", depth="auto")


def timm_twins() -> nn.Module:
    from timm.models.twins import Twins

    sizes = {"embed_dims": (16, 24), "num_heads": (2, 3), "mlp_ratios": (2, 2), "depths": (2, 2), "wss": (4, 2)}
    model: Any = Twins(num_classes=3, img_size=32, sr_ratios=(2, 1), drop_path_rate=0.1, **sizes)
    return vitas.wrap(model, embed_dim="auto", depth="auto")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deit": deit,
    "deit_rich": lambda: deit(**RICH),
    "deit_averaged": lambda: deit(global_pool="avg", qkv_bias=False),
    "deit_bare": lambda: deit(num_classes=0, depth=range(1, 2)),
    "twins": twins,
    "twins_without_windows": lambda: twins(wss=None, global_pool="", drop_rate=0.1, pos_drop_rate=0.1, drop_path_rate=0.1),
    "timm_vit": timm_vit,
    "timm_pooled": timm_pooled,
    "timm_twins": timm_twins,
}
SUPERFORMERS = ("deit", "deit_rich", "twins")


def images(name: str) -> Tensor:
    size = {"deit": 8, "timm_vit": 16, "timm_pooled": 16}.get(name if name.startswith("timm") else name[:4], 32)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model.eval()(x).contiguous()
    return y


def write(folder: Path) -> None:
    for seed, (name, build) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model, x, tensors = randomize(build(), seed), images(name), {}
        for policy in ("smallest", "random"):
            subnet = vitas.sample_subnet(model, policy=policy)
            network = vitas.export_subnet(model, subnet)
            vitas.save_subnet(network, folder / name / policy)
            if not name.startswith("timm"):
                torch.save(network, folder / name / f"{policy}.pickle")
            tensors[policy] = output(network, x)
        if name in SUPERFORMERS:
            vitas.save_superformer(model, folder / name / "superformer.safetensors")
            tensors["superformer"] = output(model, x)  # the random subnet is active
            (folder / name / "active.json").write_text(vitas.active_subnet(model).to_json())
        save_file({"x": x, **tensors}, folder / name / "outputs.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
