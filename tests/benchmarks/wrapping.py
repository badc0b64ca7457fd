"""The table of docs/wrapping.md: python tests/benchmarks/wrapping.py writes it anew (minutes on two CPU cores).

With a word, such as twins, only the lines of models with that word in their name are measured; the others stay.

For each model: the choices of wrap(model, embed_dim="auto", depth="auto"), the networks that they span, the multiply-adds of
the smallest and the largest, whether the largest equals timm's model bit by bit (in eval mode, and in train mode under one
seed), and the largest difference, max|a - b| / max|b|, between random subnets and their exports. The tests
in tests/wrapping/test_timm_vit.py go through the same models with 50 subnets each, on images of four patches.
"""

import sys
from decimal import Decimal
from pathlib import Path

import torch

import vitas

MODELS: list[tuple[str, str, dict[str, object]]] = [  # (family, timm's name, arguments)
    ("ViT", "vit_tiny_patch16_224", {}),
    ("ViT", "vit_small_patch16_224", {}),
    ("DeiT", "deit_tiny_patch16_224", {}),
    ("DeiT", "deit_small_patch16_224", {}),
    ("DeiT", "deit_base_patch16_224", {}),
    ("DeiT, distilled", "deit_tiny_distilled_patch16_224", {}),
    ("DeiT, distilled", "deit_small_distilled_patch16_224", {}),
    ("DeiT-III (LayerScale)", "deit3_small_patch16_224", {}),
    ("DeiT-III (LayerScale)", "deit3_medium_patch16_224", {}),
    ("registers", "vit_small_patch14_reg4_dinov2", {"img_size": 224}),
    ("registers", "vit_base_patch14_reg4_dinov2", {"img_size": 224}),
    ("registers, no class token", "vit_medium_patch16_reg4_gap_256", {}),
    ("registers, no class token", "vit_betwixt_patch16_reg4_gap_256", {}),
    ("qk-norm", "vit_tiny_patch16_224", {"qk_norm": True}),
    ("qk-norm", "vit_small_patch16_224", {"qk_norm": True}),
    ("global average", "vit_medium_patch16_gap_240", {}),
    ("global average", "vit_base_patch16_siglip_gap_224", {}),
    ("pre-norm (CLIP)", "vit_xsmall_patch16_clip_224", {}),
    ("pre-norm (CLIP)", "vit_medium_patch16_clip_224", {}),
    ("attention pooling (SigLIP)", "vit_base_patch16_siglip_224", {}),
    ("attention pooling (SigLIP)", "vit_base_patch32_siglip_256", {}),
    ("attention pooling", "vit_small_patch16_224", {"global_pool": "map"}),
    ("attention pooling", "test_vit3", {}),
    ("Twins-SVT", "twins_svt_small", {}),
    ("Twins-SVT", "twins_svt_base", {}),
    ("Twins-PCPVT", "twins_pcpvt_small", {}),
    ("Twins-PCPVT", "twins_pcpvt_base", {}),
]
SUBNETS = 5
PAGE = Path(__file__).parents[2] / "docs" / "wrapping.md"
START, END = "<!-- table: tests/benchmarks/wrapping.py -->\n", "<!-- end of table -->"


def random_weights(model: torch.nn.Module) -> None:
    """Draw weights that hide nothing: timm's own have zeros and ones in biases and norms."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(std=0.2).add_(0.0 if name.endswith("bias") else 1.0)


@torch.no_grad()
def row(family: str, name: str, options: dict[str, object]) -> str:
    """Return the line of one model."""
    import timm  # here, so that the list can be had without it

    torch.manual_seed(0)
    model = timm.create_model(name, drop_path_rate=0.1, **options)
    random_weights(model)
    wrapped = vitas.wrap(model, embed_dim="auto", depth="auto")
    space = vitas.search_space(wrapped)
    smallest, largest = (vitas.count_flops(wrapped, one).total for one in (space.smallest(), space.largest()))
    embed = model.patch_embeds[0] if hasattr(model, "patch_embeds") else model.patch_embed
    x = torch.randn(2, 3, *embed.img_size)
    equal = []
    for training in (False, True):
        outputs = []
        for one in (model.train(training), wrapped.train(training)):
            torch.manual_seed(1)
            outputs.append(one(x))
        equal.append(torch.equal(*outputs))
    wrapped.eval()
    errors = []
    for i in range(SUBNETS):
        vitas.sample_subnet(wrapped, policy="random" if i else "smallest")
        active, exported = wrapped(x[:1]), vitas.export_subnet(wrapped)(x[:1])
        errors.append(float((active - exported).abs().max() / active.abs().max()))
    both = "yes" if all(equal) else f"eval {equal[0]}, train {equal[1]}"
    counts = f"{len(space)} | {Decimal(space.size):.1e} | {smallest / 1e9:.3f} | {largest / 1e9:.3f}"
    return f"| {family} | {shown(name, options)} | {counts} | {both} | {max(errors):.0e} |"


def shown(name: str, options: dict[str, object]) -> str:
    """Return a model as the table names it."""
    return f"`{name}`" + "".join(f", `{key}={value}`" for key, value in options.items())


def main(word: str = "") -> None:
    """Write the table into the page, or those of its lines that name a model with `word` in it."""
    head = [
        "| kind | model | choices | networks | smallest, GMACs | largest, GMACs | largest = timm's | export |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before, _, rest = PAGE.read_text().partition(START)
    table, _, after = rest.partition(END)
    lines = []
    for family, name, options in MODELS:
        if word in name:
            lines.append(row(family, name, options))
            print(lines[-1], flush=True)
        else:
            lines += [line for line in table.splitlines() if f"| {shown(name, options)} |" in line]
    PAGE.write_text(before + START + "\n" + "\n".join([*head, *lines]) + "\n\n" + END + after)


if __name__ == "__main__":
    main(*sys.argv[1:])
