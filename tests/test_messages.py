"""Messages begin with the answer, in one line of at most 160 characters, and their advice can be followed."""

import ast
import io
from pathlib import Path

import pytest
import torch
import torch._dynamo

import vitas
from tests.superformer.test_deit import small
from vitas import ChoiceError, VitasError
from vitas.errors import ExportError, SearchError, UnknownChoice, WrapError, one_of, unknown


def said(mistake, error=VitasError):
    """Return the message of a mistake, one short line."""
    with pytest.raises(error) as caught:
        mistake()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) <= 160, text
    return text


@pytest.fixture
def model():
    return vitas.create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=3)


def test_a_few_legal_values_are_shown_and_of_many_the_nearest():
    assert one_of([2, 4], 3) == "expected one of 2, 4, got 3 (nearest: 2)"
    assert one_of(range(1, 101), 101) == "101: did you mean 100? (100 are legal from 1 to 100)"
    names = [f"blocks.{i}.mlp_dim" for i in range(12)]
    assert (
        one_of(names, "blocks.3.mlpdim", "there")
        == "'blocks.3.mlpdim': did you mean 'blocks.3.mlp_dim'? (12 are legal: there)"
    )
    assert one_of(names, None, "there") == "expected one of 12: there, got None"
    assert unknown("choice", names, "mlp_dim", "here") == (
        "unknown choice 'mlp_dim'; did you mean 'blocks.0.mlp_dim'? (12 choices: here)"
    )
    assert unknown("choice", ["depth"], "?", "here") == "unknown choice '?' (1 choice: here)"


def test_an_unknown_choice_is_met_by_the_nearest(model):
    number = len(vitas.search_space(model).choices)
    answer = f"unknown choice 'dept'; did you mean 'depth'? ({number} choices: search_space(model).choices)"
    space = vitas.search_space(model)
    assert said(lambda: space.subnet({"dept": 3}, fill="largest"), ChoiceError) == answer
    assert said(lambda: vitas.activate_subnet(model, {**space.largest(), "dept": 3}), ChoiceError) == answer
    assert said(lambda: vitas.sample_subnet(model, fixed={"dept": 3}), ChoiceError) == f"fixed: {answer}"


def test_a_subnet_says_what_it_lacks_and_stays_a_mapping(model):
    subnet = vitas.search_space(model).largest()
    with pytest.raises(KeyError):
        subnet["mlp_dim"]
    assert said(lambda: subnet["mlp_dim"], UnknownChoice).startswith(
        "unknown choice 'mlp_dim'; did you mean 'blocks.0.mlp_dim'?"
    )
    assert "mlp_dim" not in subnet
    assert subnet.get("mlp_dim") is None
    assert subnet.get("mlp_dim", 3) == 3
    assert subnet.get("depth") == subnet["depth"]


def test_a_subnet_of_another_model_is_called_that(model):
    other = vitas.Subnet({"width": 3, "height": 4, "depth": 2})
    answer = said(lambda: vitas.activate_subnet(model, other), ChoiceError)
    assert answer == "a subnet of another model: this one has no choices 'width', 'height'"


def test_what_is_missing_can_be_completed_as_is_advised(model):
    answer = said(lambda: vitas.activate_subnet(model, {"depth": 2}), ChoiceError)
    assert answer.endswith("complete them by search_space(model).subnet(values, fill='largest')")
    vitas.activate_subnet(model, vitas.search_space(model).subnet({"depth": 2}, fill="largest"))


def test_names_of_models_point_to_where_they_are_made():
    answer = said(lambda: vitas.create_superformer("vit_small_patch16_224"), ChoiceError)
    assert answer.endswith("vitas.wrap(timm.create_model('vit_small_patch16_224'))")
    number = len(vitas.list_superformers())
    assert said(lambda: vitas.create_superformer("deit_mico"), ChoiceError) == (
        f"unknown superformer 'deit_mico'; did you mean 'deit_micro'? ({number} superformers: list_superformers())"
    )
    answer = said(lambda: vitas.create_superformer("deit_micro", embed_dims=3), ChoiceError)
    assert answer.startswith("deit_micro: unknown argument 'embed_dims'; did you mean 'embed_dim'?")


@pytest.mark.extras
def test_an_export_is_not_wrapped_but_named(model):
    pytest.importorskip("timm")
    answer = said(lambda: vitas.wrap(vitas.export_subnet(model)), WrapError)
    assert answer.startswith("vitas.plain.VisionTransformer cannot be wrapped: it is an export")


RECORDERS = {
    "torch.export, strict": lambda model, image: torch.export.export(model, (image,), strict=True),
    "torch.export": lambda model, image: torch.export.export(model, (image,)),
    "torch.jit.trace": lambda model, image: torch.jit.trace(model, image),
    "torch.onnx, older": lambda model, image: torch.onnx.export(model, (image,), io.BytesIO(), dynamo=False),
    "torch.onnx": lambda model, image: torch.onnx.export(model, (image,), dynamo=True, verbose=False),
}


@pytest.mark.filterwarnings("ignore")  # of recorders: that they are old, that they see sizes
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("wrapped", [False, pytest.param(True, marks=pytest.mark.extras)])
def test_recorders_are_sent_to_an_export(recorder, wrapped, model):
    if recorder.startswith("torch.onnx"):
        pytest.importorskip("onnxscript")
    if wrapped:
        timm = pytest.importorskip("timm")
        model = vitas.wrap(timm.create_model("test_vit", img_size=8, patch_size=4, in_chans=1, depth=2))
    if recorder.endswith("strict") and not hasattr(torch._dynamo.convert_frame, "fullgraph_capture"):
        pytest.skip("this torch packs errors in its own")
    answer = said(lambda: RECORDERS[recorder](model.eval(), torch.zeros(1, 1, 8, 8)), ExportError)
    assert answer == "export a subnet first, export_subnet(model): torch.export, torch.onnx and torch.jit record one network"
    assert "of" in repr(model)  # printed as ever once the recorder has stopped


class Around(torch.nn.Module):
    """Holds a model and reads it in a way of its own."""

    def __init__(self, model, read):
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, x):
        return self.read(self.model, x)


READERS = {
    "features": lambda model, x: model.forward_features(x).mean(1),
    "features of layers": lambda model, x: model.forward_intermediates(x),
    "called": lambda model, x: model(x),
    "blocks": lambda model, x: [block(x) for block in model.running()],
    "a block": lambda model, x: model.run(model[0], x),
}


def strictly_exported(model, read, image):
    """Return how strict torch.export of a module around a model is answered."""
    if not hasattr(torch._dynamo.convert_frame, "fullgraph_capture"):
        pytest.skip("this torch packs errors in its own")
    whole = Around(model, READERS[read]).eval()
    return said(lambda: torch.export.export(whole, (image,), strict=True), ExportError)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", ["features", "features of layers", "called"])
@pytest.mark.parametrize("name", ["deit_micro", "twins_micro"])
def test_strict_export_of_a_module_around_a_model_is_sent_to_an_export_too(name, read):
    model = vitas.create_superformer(name, num_classes=2, img_size=32)
    assert strictly_exported(model, read, torch.zeros(1, 3, 32, 32)).startswith(
        "export a subnet first, export_subnet(model)"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", ["called", "blocks", "a block"])
def test_strict_export_of_plain_blocks_whose_number_is_searched_is_sent_to_an_export_too(read):
    row = vitas.nn.ShiftableIdentity([torch.nn.Linear(4, 4) for _ in range(2)])
    assert strictly_exported(row, read, torch.zeros(1, 4)).startswith("export a subnet first, export_subnet(model)")


@pytest.mark.filterwarnings("ignore")
def test_strict_export_of_a_guarded_model_is_sent_to_an_export_too(model):
    vitas.train.guard_ranks(model)
    assert strictly_exported(model, "called", torch.zeros(1, 1, 8, 8)).startswith("export a subnet first")


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"img_size": 64}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        ),
        ("twins_svt_small", {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
    ],
)
def test_strict_export_of_wrapped_models_is_sent_to_an_export(name, options):
    timm = pytest.importorskip("timm")
    model = vitas.wrap(timm.create_model(name, **options)).eval()
    image = torch.zeros(1, *model.image_shape())
    for read in ("called", "features"):
        assert strictly_exported(model, read, image).startswith("export a subnet first, export_subnet(model)")


@pytest.mark.extras
def test_a_database_that_is_not_there_is_one_cause():
    pytest.importorskip("optuna")
    with pytest.raises(SearchError) as caught:
        vitas.evolve(small(), lambda model: 1.0, storage="sqlite:////no/such/folder/search.db", progress=False)
    assert str(caught.value) == "storage: the database cannot be opened: unable to open database file"
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.1, "about the same: train longer."), (0.99, "too easy to tell subnets apart.")]
)
def test_a_report_at_chance_calls_no_task_too_easy(score, verdict, model):
    found = vitas.train.supernet_report(model, lambda model: score).verdict
    assert verdict in found
    assert ("too easy" in found) == (score > 0.9)


@pytest.mark.parametrize(
    "budget", ["60", "1.3X", "a lot", 0.6, 1.3, -1, (1, 2, 3), ("2G", "1G"), {}, "9" * 500, [None, None]]
)
def test_budgets_are_refused_in_a_line(budget, model):
    assert said(lambda: vitas.sample_subnet(model, flops=budget), vitas.BudgetError).startswith("flops: ")


@pytest.mark.extras
def test_a_budget_below_reach_is_told_of_the_depth_where_that_helps():
    timm = pytest.importorskip("timm")
    vit = timm.create_model("test_vit", img_size=8, patch_size=4, in_chans=1, depth=2)
    answer = said(lambda: vitas.sample_subnet(vitas.wrap(vit), flops="30%"), vitas.BudgetError)
    assert answer.endswith('; a searched depth reaches lower, in wrap depth="auto"')
    deeper = vitas.wrap(vit, depth="auto")
    vitas.sample_subnet(deeper, flops="30%")
    assert "depth" not in said(lambda: vitas.sample_subnet(deeper, flops="1%"), vitas.BudgetError)
    assert "depth" not in said(lambda: vitas.sample_subnet(vitas.wrap(vit), flops=("200%", None)), vitas.BudgetError)


# -- every message of the library ---------------------------------------------------------------------------------------

_LENGTHS = {"shown": 60, "brief": 80, "listed": 60, "one_of": 100, "unknown": 100}
"""Characters of what these put into a message; `shown`, `brief` and `listed` are also given how much they may."""


def length(node):
    """Return how long a message of the code is, a plain placeholder being twelve characters."""
    if isinstance(node, ast.Constant):
        return len(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return sum(map(length, node.values))
    if isinstance(node, ast.FormattedValue):
        return length(node.value)
    if isinstance(node, ast.BinOp):
        return length(node.left) + length(node.right)
    if isinstance(node, ast.IfExp):
        return max(length(node.body), length(node.orelse))
    name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
    if name in ("shown", "brief", "listed") and len(node.args) == 2:
        return node.args[1].value * (20 if name == "listed" else 1)
    return _LENGTHS.get(name, 12)


@pytest.mark.parametrize("path", sorted(Path(vitas.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_every_message_and_warning_is_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            assert "\n" not in ast.unparse(node.args[0]), f"{path}:{node.lineno}"
            assert length(node.args[0]) <= 160, f"{path}:{node.lineno}"
        made = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if made and getattr(node.exc.func, "id", "").lower().endswith("error"):
            assert length(node.exc.args[0]) <= 160, f"{path}:{node.lineno}"


LONG = "a" * 3000
GUESSES = {
    "Choice: expected ": lambda model: vitas.Choice([1, "3"]),
    "Choice: expected values, got a mapping": lambda model: vitas.Choice({2: 0.9, 4: 0.1}),
    "embed_dim: lowest, highest and step are range(32, 65, 16), got [32, 64, 16]": lambda model: vitas.create_superformer(
        "deit_micro", embed_dim=(32, 64, 16)
    ),
    "deit_micro: unknown argument 'width'; did you mean 'embed_dim'?": lambda model: vitas.create_superformer(
        "deit_micro", width=[32, 64]
    ),
    "depth is searched: activate_subnet runs a value, vitas.narrow": lambda model: setattr(model, "depth", 1),
    "num_heads is searched": lambda model: setattr(model.blocks[0].attn, "num_heads", 2),
    "flops: got '0.5'; a share of the costliest subnet is written as a string, '50%'": lambda model: vitas.count_subnets(
        model, flops="0.5"
    ),
    "subnet: expected a mapping of names to numbers, got 'largest'; search_space(model).largest()": lambda model: (
        vitas.activate_subnet(model, "largest")
    ),
    "limits: accuracy is to be large; write (least, None) or (None, most), got 0.9": lambda model: vitas.evolve(
        model, lambda model: 1.0, objectives={"accuracy": "max"}, limits={"accuracy": 0.9}
    ),
    "widen: embed_dim: expected at most 96, got 128: ": lambda model: vitas.widen(model, {"embed_dim": [128]}),
    "loss: expected a function of logits, logits of the original and labels; torch's cross_entropy": lambda model: (
        vitas.compress(model, [], [], flops="50%", loss=torch.nn.functional.cross_entropy)
    ),
    "sharing: expected one of ": lambda model: vitas.Dim([2, 4], sharing=LONG),
    "policy: expected one of random, ": lambda model: vitas.sample_subnet(model, policy="biggest"),
    "flops: ": lambda model: vitas.sample_subnet(model, flops="half"),
    "params: ": lambda model: vitas.count_subnets(model, params=LONG),
    "fixed: unknown choice ": lambda model: vitas.sample_subnet(model, fixed={LONG: 3}),
    "only: unknown choice ": lambda model: vitas.SubnetSampler(model, only={"mlp_dims": [1]}),
    "fixed: depth: ": lambda model: vitas.sample_subnet(model, fixed={"depth": 2000}),
    "seed: expected ": lambda model: vitas.SubnetSampler(model, seed="one"),
    "depth: ": lambda model: vitas.search_space(model).subnet({"depth": LONG}, fill="largest"),
    "fill: expected one of ": lambda model: vitas.search_space(model).subnet({}, fill="max"),
    "convention: expected one of ": lambda model: vitas.count_flops(model, convention="macs"),
    "weights: expected one of ": lambda model: vitas.export_subnet(model, weights="copy"),
    "side: expected one of ": lambda model: vitas.activate_subnet(model, vitas.active_subnet(model), side="top"),
    "unknown superformer ": lambda model: vitas.create_superformer(LONG),
    "deit_micro: unknown argument ": lambda model: vitas.create_superformer("deit_micro", heads=3),
    "published subnet: expected one of ": lambda model: vitas.published_subnet("vitas_x"),
    "expected a model, got the name ": lambda model: vitas.wrap("vit_tiny_patch16_224"),
    "population: expected ": lambda model: vitas.evolve(model, lambda model: 1.0, population=-1),
    "evaluate: expected ": lambda model: vitas.evolve(model, 3),
    "objectives: ": lambda model: vitas.evolve(model, lambda model: 1.0, objectives={"accuracy": "up"}),
    "limits: ": lambda model: vitas.evolve(model, lambda model: 1.0, limits=LONG),
    "expected a budget, ": lambda model: vitas.compress(model, [], []),
    "expected a model, got the name 'vit_small'": lambda model: vitas.compress("vit_small", [], [], flops="50%"),
    "expected a torch.nn.Module, got NoneType": lambda model: vitas.compress(None, [], [], flops="50%"),
    "epochs: expected ": lambda model: vitas.compress(model, [], [], flops="50%", epochs=0),
    "expected a path, got 3": lambda model: vitas.save_subnet(vitas.export_subnet(model), 3),
}


@pytest.mark.parametrize("begins", GUESSES)
def test_a_wrong_guess_is_answered_at_once(begins, model):
    assert said(lambda: GUESSES[begins](model)).startswith(begins)
