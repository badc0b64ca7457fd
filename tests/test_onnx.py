import importlib.util
import io
from itertools import product

import pytest
import torch

from tests.contract import randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import create_superformer, export_subnet, search_space, wrap

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:onnx"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::DeprecationWarning:copyreg"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:Constant folding:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning"),
]


def superformer(kind, size=None):
    if kind == "small":
        return small(init_values=0.3), (2, 8, 8)
    if kind == "distilled":
        return small(distilled=True, private="v"), (2, 8, 8)
    if kind == "twins":
        return small_twins(size or (12, 10)), (2, *(size or (12, 10)))
    if kind == "wrapped twins":
        from timm.models.twins import Twins

        shape = {"embed_dims": [8, 12], "num_heads": [2, 3], "depths": [2, 3], "mlp_ratios": [4, 2], "sr_ratios": [2, 1]}
        return wrap(Twins(size or 32, **shape, wss=(3, 3), num_classes=5)), (3, *(size or (32, 32)))
    return create_superformer("deit_micro", img_size=(16, 32), num_classes=7, global_pool="avg"), (3, 16, 32)


def onnx_file(plain, example, dynamo):
    """Return the file that one of torch's two exporters writes, for batches of any size."""
    file = io.BytesIO()
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=1024)
        torch.onnx.export(plain, (example,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False).save(file)
    else:
        torch.onnx.export(plain, (example,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    return file.getvalue()


def check(kind, dynamo, size=None, seed=4):
    """Compare onnxruntime with the export of a random subnet at several batches."""
    import onnxruntime

    model, shape = superformer(kind, size)
    randomize(model).eval()
    plain = export_subnet(model, search_space(model).sample(torch.Generator().manual_seed(seed)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = onnx_file(plain, torch.randn(2, *shape), dynamo)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    for images in (1, 2, 5):
        x = torch.randn(images, *shape)
        (got,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), plain(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["small", "distilled", "micro", "twins"])
def test_exports_run_in_onnxruntime_at_any_batch(kind):
    check(kind, dynamo=True)


@pytest.mark.parametrize("kind", ["small", "distilled", "micro", "twins", "wrapped twins"])
def test_the_older_exporter_does_the_same(kind):
    check(kind, dynamo=False)


@pytest.mark.parametrize("size", [(13, 11), (24, 24), (4, 9)])
def test_windows_that_are_padded_and_whole_ones_by_the_older_exporter(size):
    check("twins", dynamo=False, size=size)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", list(product((4, 7, 12, 17, 24), (5, 10, 18, 31))))
def test_many_sizes_by_the_older_exporter(size, seed):
    check("twins", dynamo=False, size=size, seed=seed)


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(13, 11), (16, 16)])
def test_more_sizes_by_the_newer_exporter(size):
    check("twins", dynamo=True, size=size)  # timm's own Twins not: its windows have five axes, the exporter takes four
