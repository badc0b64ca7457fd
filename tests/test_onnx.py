import importlib.util

import pytest
import torch

from tests.contract import randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import create_superformer, export_subnet, search_space

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:onnx"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::DeprecationWarning:copyreg"),
]


def superformer(kind):
    if kind == "small":
        return small(init_values=0.3), (2, 8, 8)
    if kind == "distilled":
        return small(distilled=True, private="v"), (2, 8, 8)
    if kind == "twins":
        return small_twins(), (2, 12, 10)
    return create_superformer("deit_micro", img_size=(16, 32), num_classes=7, global_pool="avg"), (3, 16, 32)


@pytest.mark.parametrize("kind", ["small", "distilled", "micro", "twins"])
def test_exports_run_in_onnxruntime_at_any_batch(kind, tmp_path):
    import onnxruntime

    model, shape = superformer(kind)
    randomize(model).eval()
    space = search_space(model)
    plain = export_subnet(model, space.sample(torch.Generator().manual_seed(4)))
    path = tmp_path / "net.onnx"
    example, batch = torch.randn(2, *shape), torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(plain, (example,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    for images in (1, 2, 5):
        x = torch.randn(images, *shape)
        (got,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), plain(x).detach(), rtol=1e-4, atol=1e-4)
