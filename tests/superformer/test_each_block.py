"""Own choices for each block: lists with an entry a block, and mappings from names and globs of blocks."""

import pytest
import torch

from tests.contract import macs, randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import (
    Choice,
    ChoiceError,
    build_subnet,
    count_flops,
    count_params,
    create_superformer,
    export_subnet,
    load_superformer,
    sample_subnet,
    save_superformer,
    search_space,
)
from vitas.errors import FileError


def searched(model, word):
    """The values of the blocks' choices whose names end on `word`."""
    choices = search_space(model).choices
    return {name.removesuffix(f".{word}"): choice.values for name, choice in choices.items() if name.endswith(word)}


LATER = {"blocks.0": (1, 2), "blocks.2": (1, 2)}


@pytest.mark.parametrize(
    "num_heads",
    [
        [[1, 2], [2], [1, 2]],
        [[1, 2], 2, (1, 2)],
        {"blocks.1": 2, "*": [1, 2]},
        {"blocks.[02]": [1, 2], "blocks.*": [2]},
        {"blocks.1.num_heads": 2, "blocks.*.num_heads": iter([1, 2])},
        {"blocks.0": [1, 2], "blocks.1": 2, "blocks.2": Choice([1, 2], name="blocks.2.num_heads")},
    ],
)
def test_ways_to_say_the_same(num_heads):
    model = small(num_heads=num_heads)
    assert searched(model, "num_heads") == LATER
    assert model.blocks[1].attn.num_heads.largest == 2
    uniform = small()
    assert searched(model, "mlp_dim") == searched(uniform, "mlp_dim")


MODELS = {
    "heads": lambda: small(num_heads={"blocks.[02]": [1, 2], "*": 2}, mlp_dim=[[3, 6], 8, [6, 8]]),
    "shared": lambda: small(private=None, qkv_dim={"blocks.0": [4, 8], "*": [6]}, num_heads={"*.0": [1, 2], "*": [1, 2, 3]}),
    "ratios": lambda: small(mlp_dim=None, mlp_ratio={"blocks.2": 2.5, "*": [1, 2.5]}),
    "either": lambda: small(mlp_dim={"blocks.0": [3, 6], "*": None}, mlp_ratio=[1.0, [1, 2], 2]),
    "free slots": lambda: small(shift=False, mlp_dim={"blocks.0": [3, 6], "*": 8}),
    "twins": lambda: small_twins(num_heads={"stages.0.*": [1, 2], "stages.1.blocks.[0-1]": [2, 4], "*": 4}),
    "twins, a stage": lambda: small_twins(
        num_heads=[[1, 2], {"stages.1.blocks.0": [2, 4], "*": [4]}], mlp_dims=[[3, [3, 6]], [[4, 8], 8, [4], 8]]
    ),
    "twins, heads decide": lambda: small_twins(qkv_dims={"stages.0.*": [4, 8], "*": None}, num_heads=[2, [1, 2]]),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_exports_counts_and_files_are_exact(kind, tmp_path):
    model = randomize(MODELS[kind]().double()).eval()
    x = torch.randn(2, *model.image_shape(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        subnet = sample_subnet(model, generator=generator)
        export = export_subnet(model, verify=x)
        assert count_flops(model, subnet).total == macs(export, x[:1])
        assert count_params(model, subnet) == sum(parameter.numel() for parameter in export.parameters())
    save_superformer(model, tmp_path / "model.safetensors")
    twin = randomize(MODELS[kind]().double(), seed=5).eval()
    load_superformer(twin, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    other = small() if isinstance(model, type(small())) else small_twins()
    with pytest.raises(FileError):
        load_superformer(other.double(), tmp_path / "model.safetensors")


def test_the_space_is_counted():
    """Two of three blocks with two head counts, the rest fixed: depth 1, 2 and 3 have 2, 2 and 4 networks."""
    model = small(num_heads={"blocks.1": 2, "*": [1, 2]}, embed_dim=8, patch_size=4, qkv_dim=4, mlp_dim=8)
    assert search_space(model).size == 2 + 2 + 4


def test_budgets_and_plain_networks_take_them():
    own = {"num_heads": {"blocks.[0-2]": [2, 4], "*": [4]}, "mlp_dim": {"blocks.0.mlp_dim": [96, 192], "*": [192]}}
    model = create_superformer("deit_micro", num_classes=3, img_size=16, **own)
    subnet = sample_subnet(model, flops="50%", only={"blocks.*.num_heads": [2]}, generator=torch.Generator().manual_seed(0))
    assert {name for name in subnet if name.endswith("heads")} <= {f"blocks.{i}.num_heads" for i in range(3)}
    network = build_subnet("deit_micro", subnet, num_classes=3, img_size=16, **own)
    export = export_subnet(model, subnet)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in export.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": [[1, 2], [2]]}, "num_heads: expected one entry for each of the 3 blocks, or values for all, got 2"),
        ({"num_heads": {"blocks.[01]": [1, 2]}}, r"num_heads: nothing is said of blocks\.2; end on the rest, such as"),
        (
            {"mlp_dim": {"block.*": [3, 6]}},
            r"mlp_dim: no block matches this glob: .*got 'block\.\*' \(nearest: blocks\.\*\)",
        ),
        (
            {"mlp_dim": {"blocks.3": 3, "*": 6}},
            r"mlp_dim: unknown block 'blocks\.3'; did you mean 'blocks\.2'\? \(3 blocks: blocks\.0 to",
        ),
        ({"mlp_dim": {"blocks.0.num_heads": 3, "*": 6}}, r"mlp_dim: unknown block"),
        ({"num_heads": {0: [1, 2]}}, "num_heads: expected the name of a block or a glob, got 0"),
        ({"num_heads": {"*": [1, 2], "blocks.0": 2}}, r"'blocks\.0' comes after names of the same blocks; the first that"),
        ({"num_heads": {"blocks.0": [1, 3], "*": [1, 2]}}, r"blocks\.0\.num_heads: 3 heads do not divide a qkv_dim of 4"),
        ({"num_heads": {}}, "num_heads: nothing is said of"),
        ({"num_heads": {"*": {"*": 2}}}, r"blocks\.0\.num_heads"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": {"stages.0.*": [1, 2]}}, r"num_heads: nothing is said of stages\.1\.blocks\.0"),
        ({"num_heads": {"stages.2.*": [1, 2], "*": 2}}, r"num_heads: no block matches this glob"),
        ({"mlp_dims": [[3, 6], [[4, 8], [8]]]}, r"mlp_dims: expected one entry for each of the 4 blocks"),
        ({"mlp_dims": [{"stages.1.*": 3}, [4, 8]]}, r"mlp_dims: no block matches this glob"),
    ],
)
def test_what_does_not_fit_the_stages_is_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        small_twins(**options)
