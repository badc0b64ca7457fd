"""torch.compile(model) as users type it: a bounded number of graphs, and the same numbers."""

import copy
import pickle

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from tests.contract import randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import images
from tests.superformer.test_twins import small as small_twins
from vitas import Dim, activate_subnet, active_subnet, create_superformer, export_subnet, plain, sample_subnet, search_space
from vitas.choice import mark_sizes
from vitas.nn.window import ElasticWindowAttention

# torch's own tracer looks at .grad of the tensors between graphs.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Counter:
    """A backend that counts graphs and runs them as they are, or as another backend does."""

    def __init__(self, backend=lambda graph, inputs: graph):
        self.graphs = 0
        self.backend = backend

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.backend(graph, inputs)


@pytest.fixture(autouse=True)
def no_silent_fall_back():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def compare_over_subnets(model, x, number, gradients_every=1):
    """Return the graphs after the largest and after each of `number` random subnets, all compared with eager.

    Outputs are compared, and gradients at the first and at each `gradients_every`-th step after it.
    """
    counter = Counter()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=counter)
    generator = torch.Generator().manual_seed(0)
    history = []
    for n in range(1 + number):
        subnet = sample_subnet(compiled, generator=generator, policy="random" if n else "largest")
        activate_subnet(eager, subnet, side=search_space(model).side)
        assert active_subnet(compiled) == subnet
        got, expected = compiled(x), eager(x)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        history.append(counter.graphs)
        if n % gradients_every:
            continue
        for one, out in ((model, got), (eager, expected)):
            one.zero_grad(set_to_none=True)
            out.square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10, msg=name)
    assert history[-1] == counter.graphs
    return history


@pytest.mark.parametrize("options", [{}, {"private": None}, {"sharing": "bilateral"}], ids=["own", "shared", "sides"])
def test_a_superformer_compiles_to_a_few_graphs_all_at_the_first_step(options):
    model = randomize(small(num_heads=[2, 4], qkv_dim=[8, 12], mlp_dim=[4, 6, 8], **options).double())
    history = compare_over_subnets(model, torch.randn(3, 2, 8, 8, dtype=torch.float64), 12)
    assert history == [2] * 13


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_compiles_as_the_original_does(travel):
    model = travel(randomize(small(depth=2, num_heads=[2, 4], qkv_dim=[8, 12]).double()))
    assert compare_over_subnets(model, torch.randn(3, 2, 8, 8, dtype=torch.float64), 3) == [2] * 4


def test_a_twins_compiles_to_a_few_graphs_for_each_stage_all_at_the_first_step():
    model = randomize(small_twins(num_heads=[[2, 4]] * 2, qkv_dims=[[8, 12]] * 2).double())
    history = compare_over_subnets(model, images(), 3)
    # For each stage merging, two kinds of block, position generator; norm and head.
    assert history == [2 * 4 + 1] * 4


@pytest.mark.heavy
def test_a_twins_whose_image_size_is_searched_compiles_to_few_more_graphs():
    model = randomize(small_twins(img_size=[9, 12, 16], num_heads=[[2, 4]] * 2, qkv_dims=[[8, 12]] * 2).double())
    history = compare_over_subnets(model, images(16, 16), 30, gradients_every=5)
    # Images for the stages; and later the first stage at another size, and a map that is a single window.
    assert history[0] == 2 * 4 + 1 + 1
    assert history[-1] == history[0] + 2


@pytest.mark.parametrize("first", [5, 6])
def test_windows_compile_to_one_graph_whether_a_map_is_padded_or_not(first):
    layer = ElasticWindowAttention(4, 2, window_size=3).double().requires_grad_(False)
    counter = Counter(aot_eager)
    compiled = torch.compile(layer, backend=counter)
    for side in (first, 6, 7, 9):
        x = torch.randn(2, side, side + 2, 4, dtype=torch.float64)
        mark_sizes(x)
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.graphs == 1


def test_a_module_of_ones_own_that_reads_the_channels_compiles_to_one_graph():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = Dim([2, 3, 5, 6])
            self.gain = nn.Parameter(torch.randn(6, dtype=torch.float64))

        def forward(self, x):
            return x * self.gain[self.width.channels()].square().sum()

    assert compare_over_subnets(Gain(), torch.randn(3, dtype=torch.float64), 8) == [1] * 9


@pytest.mark.parametrize(("build", "size"), [(small, (8, 8)), (small_twins, (12, 10))])
def test_an_export_compiles_to_one_graph(build, size):
    model = randomize(build().double())
    sample_subnet(model, generator=torch.Generator().manual_seed(0))
    network = export_subnet(model).eval()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))


def test_drop_path_adds_no_graphs_and_drops_whole_samples():
    model = randomize(small(num_heads=[2, 4], qkv_dim=[8, 12], depth=range(1, 6), drop_path_rate=0.5).double())
    counter = Counter()
    compiled = torch.compile(model, backend=counter)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    for _ in range(10):
        sample_subnet(compiled, generator=generator)
        compiled(x).sum().backward()
    assert counter.graphs == 2
    torch.testing.assert_close(compiled.eval()(x), model(x))


def test_checkpointed_blocks_run_eagerly_and_rightly():
    model = randomize(small(num_heads=[2, 4], qkv_dim=[8, 12]).double())
    model.set_grad_checkpointing()
    history = compare_over_subnets(model, torch.randn(3, 2, 8, 8, dtype=torch.float64), 4)
    assert history == [1] * 5  # norm and head; no block is compiled


@pytest.mark.heavy
def test_vitas_deit_compiles_to_at_most_four_graphs_over_100_subnets():
    patches = [14, 16, 28]  # which divide a small image
    model = randomize(create_superformer("vitas_deit", num_classes=10, img_size=112, patch_size=patches).double())
    history = compare_over_subnets(model, torch.randn(2, 3, 112, 112, dtype=torch.float64), 100, gradients_every=4)
    assert history[-1] <= 4
    assert history[0] == history[-1]
    assert search_space(model).choices


@pytest.mark.heavy
def test_a_twins_of_four_stages_compiles_to_17_graphs_and_no_code_object_to_more_than_8():
    model = randomize(create_superformer("twins_micro", num_classes=10, img_size=32).double())
    history = compare_over_subnets(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), 8)
    assert history == [4 * 4 + 1] * 9
    assert torch._dynamo.config.recompile_limit == 8  # for one code object; beyond it the step fails


@pytest.mark.parametrize(("build", "side", "model"), [(small, 8, "VisionTransformer"), (small_twins, 12, "Twins")])
def test_forward_breaks_as_few_graphs_as_that_of_the_plain_model(build, side, model, monkeypatch):
    def breaks(network):
        torch._dynamo.reset()
        counted = torch._dynamo.utils.counters["graph_break"]
        counted.clear()
        torch.compile(network, backend="eager")(torch.randn(2, 2, side, side))
        return sum(counted.values())

    own = breaks(network := build())
    monkeypatch.setattr(type(network), "forward", getattr(plain, model).forward)
    assert own == breaks(network) > 0
