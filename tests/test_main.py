"""The command line."""

import subprocess
import sys

import pytest
import torch

import vitas
from vitas.__main__ import main


def test_spaces_lists_all_with_the_size_of_each(capsys):
    assert main(["spaces"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == vitas.list_superformers()
    assert "2.0e+09 networks, 21 choices" in next(line for line in lines if line.startswith("deit_micro"))
    assert "nothing to search" in next(line for line in lines if line.startswith("deit_tiny"))


def test_count_shows_the_space_and_how_many_networks_a_budget_leaves(capsys):
    assert main(["count", "deit_micro", "--img-size", "16", "--num-classes", "10", "--flops", "50%"]) == 0
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
    number = vitas.count_subnets(model, flops="50%")
    shown = capsys.readouterr().out
    assert shown == f"{vitas.search_space(model)}\n{number} networks inside the budget\n"
    assert main(["count", "deit_micro", "--img-size", "16", "--params", "100000"]) == 0
    assert f"{vitas.count_subnets(model_of(1000), params=100_000)} networks" in capsys.readouterr().out


def model_of(num_classes):
    return vitas.create_superformer("deit_micro", num_classes=num_classes, img_size=16)


def test_show_says_what_a_folder_holds(tmp_path, capsys):
    model = model_of(10)
    small = vitas.export_subnet(model, vitas.search_space(model).smallest())
    vitas.save_subnet(small, tmp_path / "net")
    assert main(["show", str(tmp_path / "net")]) == 0
    subnet = vitas.search_space(model).smallest()
    assert capsys.readouterr().out.splitlines() == [
        "vitas.plain.VisionTransformer",
        f"parameters     {vitas.count_params(model, subnet):,}",
        f"multiply-adds  {vitas.count_flops(model, subnet).total:,} for 3 x 16 x 16",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["count", "deit_micr"], "'deit_micr'"),
        (["count", "deit_tiny"], "no choices"),
        (["count", "deit_micro", "--flops", "half"], "half"),
        (["show", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_1(command, message, capsys):
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert not out
    assert err.startswith("vitas: ")
    assert message in err


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "vitas", "show", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vitas: nowhere")


@pytest.fixture
def data(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for label, colour in {"dark": 40, "light": 200}.items():
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 36), (colour + number, colour, colour)).save(
                    tmp_path / "data" / part / label / f"{number}.png"
                )
    return tmp_path / "data"


def compress_command(data, output, *more):
    small = ["--img-size", "32", "--epochs", "1", "--finetune-epochs", "1", "--batch-size", "4", "--workers", "0"]
    search = ["--population", "2", "--generations", "1", "--flops", "50%", "--device", "cpu"]
    return ["compress", "--model", "test_vit", "--data", str(data), "--output", str(output), *small, *search, *more]


@pytest.mark.extras
def test_compress_takes_a_folder_of_images_and_a_checkpoint(data, tmp_path, capsys):
    import timm

    torch.save(timm.create_model("test_vit", num_classes=2, img_size=32).state_dict(), tmp_path / "own.pth")
    assert main(compress_command(data, tmp_path / "half", "--checkpoint", str(tmp_path / "own.pth"))) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f'vitas.load_subnet("{tmp_path / "half" / "network"}")'
    network = vitas.load_subnet(tmp_path / "half" / "network")
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.extras
def test_compress_says_what_does_not_fit(data, tmp_path, capsys):
    def said(*command):
        assert main(list(command)) == 1
        return capsys.readouterr().err

    assert "expected train/ and val/" in said(*compress_command(tmp_path, tmp_path / "half"))
    assert "timm cannot make it" in said(*compress_command(data, tmp_path / "half", "--model", "vit_of_nobody"))
    assert "timm cannot make it" in said(*compress_command(data, tmp_path / "half", "--checkpoint", "missing.pth"))
    (data / "val" / "dark").rename(data / "val" / "dim")
    assert "train/ and val/ have other classes" in said(*compress_command(data, tmp_path / "half"))
