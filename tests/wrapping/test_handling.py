"""What users and frameworks do to a searchable model: wrappers, adapters, writes through attributes."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from tests.contract import randomize, relative_error
from vitas import (
    ChoiceError,
    VitasError,
    activate_subnet,
    count_flops,
    create_superformer,
    export_subnet,
    sample_subnet,
    search_space,
    use_subnet,
    wrap,
)
from vitas.errors import ExportError, WrapError
from vitas.nn import CyclicLinear
from vitas.wrapping import rows

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras


def original():
    options = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5, "init_values": 0.5}
    return randomize(timm.create_model("vit_tiny_patch16_224", **options)).eval()


def narrow(width=24):
    """Return a wrapped model of which a narrow subnet is active: at 36 of 48 its run wraps around."""
    model = wrap(original(), embed_dim=["50%", "75%", "100%"])
    activate_subnet(model, search_space(model).subnet({"embed_dim": width}, fill="largest"))
    return model


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Forwarding(nn.Module):
    """A wrapper that passes on what it is asked for, as those of frameworks are."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("build", [narrow, lambda: create_superformer("deit_micro", num_classes=5, img_size=32)])
def test_a_wrapper_that_passes_on_attributes_exports_what_is_inside(build):
    model = Forwarding(randomize(build()).eval())
    subnet = sample_subnet(model, policy="smallest")
    export = export_subnet(model, subnet, verify=X)
    assert type(export) is Forwarding
    assert relative_error(export(X), export_subnet(model.inner)(X)) == 0
    assert not any(True for part in export.modules() if "vitas.nn" in type(part).__module__)


def test_replicas_of_data_parallel_are_refused():
    with pytest.raises(VitasError, match=r"^use DistributedDataParallel: "):
        narrow()._replicate_for_data_parallel()  # what it asks of each module, where there are several GPUs


# -- weights that are made of others -----------------------------------------------------------------------------------

HOOKS = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}
PARAMETRIZATIONS = {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}


def hybrid():
    """Return a model with convolutions that stay as they are."""
    options = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 1, "patch_size": 1, "num_classes": 5}
    return randomize(timm.create_model("vit_tiny_r_s16_p8_224", **options)).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_makes_a_weight_of_a_part_that_stays_is_refused(hook):
    model = wrap(hybrid())
    HOOKS[hook](model.patch_embed.backbone.conv)
    with pytest.raises(
        ExportError, match=r"hook makes the weight of a StdConv2dSame, .* lose; take it off first, as by prune"
    ):
        export_subnet(model)
    if hook == "pruned":
        prune.remove(model.patch_embed.backbone.conv, "weight")
        export_subnet(model, sample_subnet(model, policy="smallest"), verify=X)


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
def test_a_parametrization_is_exported_and_counted(how):
    model = wrap(hybrid())
    for layer in (model.patch_embed.backbone.conv, model.blocks[0].attn.qkv, model.blocks[0].mlp.fc1, model.head):
        PARAMETRIZATIONS[how](layer)
    model.eval()
    export = export_subnet(model, sample_subnet(model, policy="smallest"), verify=X)
    counted = count_flops(model, sample_subnet(model, policy="smallest")).total
    assert counted == count_flops(export, inputs=X[:1]).total  # with what the norm of a part that stays multiplies


# -- adapters ----------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A low-rank adapter beside a layer, as peft's are."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = (
            nn.Linear(base_layer.in_features, 2, bias=False),
            nn.Linear(2, base_layer.out_features, bias=False),
        )

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("how", ["activate", "sample", "use", "export"])
def test_an_adapter_beside_a_layer_of_which_a_part_would_run_is_refused(how):
    model = wrap(original(), embed_dim=["50%", "100%"])
    blocks = model.get_submodule("blocks")
    blocks[1].mlp.fc1 = Adapted(blocks[1].mlp.fc1)
    space = search_space(model)
    do = {
        "activate": lambda: space.activate(space.smallest()),
        "sample": lambda: sample_subnet(model, policy="smallest"),
        "use": lambda: use_subnet(model, space.smallest()).__enter__(),
        "export": lambda: export_subnet(model, space.smallest()),
    }[how]
    with pytest.raises(ChoiceError, match=r"embed_dim: only .* runs, the adapter on blocks\.1\.mlp\.fc1 being so wide"):
        do()
    assert space.active() == space.largest()
    fewer_heads = space.subnet({"blocks.0.num_heads": 1, "blocks.0.mlp_dim": 48}, fill="largest")  # elsewhere all is free
    export = export_subnet(model, fewer_heads, verify=X)
    assert type(export.blocks[1].mlp.fc1) is Adapted


def test_an_adapted_model_is_not_wrapped():
    model = original()
    model.blocks[0].attn.qkv = Adapted(model.blocks[0].attn.qkv)
    with pytest.raises(WrapError, match=r"blocks\.0\.attn\.qkv is an adapter \(tests\); merge"):
        wrap(model)


# -- writes through attributes -----------------------------------------------------------------------------------------

WRITES = {
    "freeze": lambda part: setattr(part, "requires_grad", False),
    "freeze by method": lambda part: part.requires_grad_(False),
    "data": lambda part: part.data.zero_(),
    "new data": lambda part: setattr(part, "data", torch.zeros(1)),
    "in place": lambda part: part.zero_(),
    "item": lambda part: part.__setitem__(0, 0.0),
    "copy": lambda part: part.copy_(torch.zeros(part.shape)),
    "init": nn.init.zeros_,
    "timm's init": timm.layers.trunc_normal_,
    "detached": lambda part: part.detach().mul_(2),
    "optimiser": lambda part: torch.optim.AdamW([part]),
    "view": lambda part: part[..., :1].zero_(),
    "data of a view": lambda part: part[..., 0].data.zero_(),
    "view of a view": lambda part: part.unsqueeze(0).mT[0].fill_(1),
    "piece": lambda part: part.chunk(2, -1)[0].add_(1),
    "row": lambda part: next(iter(part)).copy_(next(iter(part))),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("write", WRITES)
def test_the_part_in_use_of_a_parameter_cannot_be_written_to(write, grad):
    for width in (24, 36):
        model = narrow(width)
        before = copy.deepcopy(model.state_dict())
        for path in ("pos_embed", "cls_token", "blocks.1.ls2.gamma"):
            *owner, name = path.split(".")
            part = getattr(model.get_submodule(".".join(owner)), name)
            with (
                pytest.raises(VitasError, match=rf"^{name}: the active subnet's part cannot be written to; take the whole"),
                torch.set_grad_enabled(grad),
            ):
                WRITES[write](part)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_written_while_the_largest_is_active_takes_effect_on_the_whole_model():
    model = narrow(48)
    model.pos_embed.requires_grad = False
    model.pos_embed.data.zero_()
    nn.init.ones_(model.cls_token)
    torch.optim.AdamW([model.pos_embed])
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["pos_embed"]
    assert (model.get_parameter("pos_embed") == 0).all()
    assert (model.get_parameter("cls_token") == 1).all()
    activate_subnet(model, search_space(model).smallest())
    assert not export_subnet(model).pos_embed.requires_grad


def test_what_is_computed_from_a_part_is_plain():
    model = narrow()
    assert type(model.pos_embed + 1) is torch.Tensor
    assert type(torch.cat([model.cls_token, model.pos_embed], 1)) is torch.Tensor
    assert model.pos_embed.shape == (1, 5, 24)
    assert type(model.pos_embed[:, [0, 1]]) is torch.Tensor
    model(X).square().sum().backward()
    assert model.get_parameter("pos_embed").grad is not None
    assert type(export_subnet(model).pos_embed) is nn.Parameter


# -- assigned parts ----------------------------------------------------------------------------------------------------


def test_an_assigned_part_that_could_not_follow_is_refused_at_once():
    model = narrow()
    x, old = model(X), model.head
    with pytest.raises(VitasError, match=r"head: expected 48 channels, as embed_dim has, got Linear\(in_features=50"):
        model.head = nn.Linear(50, 3)
    with pytest.raises(VitasError, match=r"head: a Sequential cannot follow embed_dim; expected nn\.Linear\(48, \.\.\.\)"):
        model.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(48, 3))
    assert model.head is old
    assert torch.equal(model(X), x)
    model.head = nn.Sequential(nn.Dropout(0.1), CyclicLinear(search_space(model).choices["embed_dim"], 3)).eval()
    export_subnet(model, verify=X)
    fixed = wrap(original())
    fixed.head = nn.Sequential(nn.Linear(48, 6), nn.Linear(6, 3))
    export_subnet(fixed, search_space(fixed).smallest(), verify=X)


def test_a_parameter_of_another_width_is_refused():
    model = narrow()
    for shape in ((1, 5, 24), (48,), (1, 5, 36)):
        with pytest.raises(VitasError, match=r"pos_embed: expected the shape \('any', 'any', 48\) of the whole model, got"):
            model.pos_embed = nn.Parameter(torch.zeros(shape))
    model.pos_embed = nn.Parameter(torch.zeros(1, 5, 48))
    assert relative_error(export_subnet(model)(X), model(X)) <= 1e-5


# -- the blocks that run -----------------------------------------------------------------------------------------------


def shallow():
    """Return a wrapped model of which one of two blocks runs."""
    model = wrap(original(), depth=[1, 2])
    sample_subnet(model, policy="smallest")
    return model


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_every_method_of_a_container_is_known(kind):
    """It changes the container, changes every block, or reads."""
    known = {*rows.CHANGES, *rows.ALL_BLOCKS, *dir(object)}
    methods = {name: getattr(kind, name) for name in dir(kind) if callable(getattr(kind, name)) and name not in known}
    # transformers adds methods of its own to torch's modules
    others = {name for name, method in methods.items() if method.__module__.startswith("torch")}
    reading = re.compile(
        r"(named_|get_|_)?(buffers|children|modules|parameters|state_dict|extra_state)|get_.*|forward|extra_repr"
    )
    inner = re.compile(r"__\w+__|_\w+")  # of torch's own use
    assert not {name for name in others if not reading.fullmatch(name) and not inner.fullmatch(name)}


def test_what_changes_every_block_reaches_those_at_rest():
    model = shallow()
    whole = model.get_submodule("blocks")
    assert model.blocks.requires_grad_(False) is not None
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    model.blocks.requires_grad_(True)
    model.blocks.train()
    assert all(part.training for block in whole for part in block.modules())
    assert model.blocks.training
    model.blocks.eval()
    assert not any(part.training for block in whole for part in block.modules())
    assert model.blocks.double() is not None
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float64}
    model.blocks[:1].requires_grad_(False)  # a slice is its blocks
    assert [next(block.parameters()).requires_grad for block in whole] == [False, True]


CONTAINERS = {
    "hook": lambda blocks: blocks.register_forward_hook(print),
    "backward hook": lambda blocks: blocks.register_full_backward_hook(print),
    "add_module": lambda blocks: blocks.add_module("more", nn.Identity()),
    "parameter": lambda blocks: blocks.register_parameter("more", nn.Parameter(torch.ones(1))),
    "attribute": lambda blocks: setattr(blocks, "more", 1),
    "module": lambda blocks: setattr(blocks, "0", nn.Identity()),
    "extend": lambda blocks: blocks.extend([nn.Identity()]),
    "insert": lambda blocks: blocks.insert(0, nn.Identity()),
    "delete": lambda blocks: blocks.__delitem__(0),
}


@pytest.mark.parametrize("change", CONTAINERS)
def test_what_changes_the_container_is_refused(change):
    with pytest.raises(VitasError, match="this holds the blocks that run; to change the model's blocks export a subnet"):
        CONTAINERS[change](shallow().blocks)


def test_hooks_on_blocks_run_while_gradients_are_checkpointed():
    model, seen = shallow().train(), []
    model.set_grad_checkpointing(True)
    model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    model.blocks[0].note = "mine"
    model(X).sum().backward()
    assert seen
    assert model.get_submodule("blocks.0").note == "mine"
    assert model.blocks[0].attn is model.get_submodule("blocks.0.attn")


def leaving():
    """Return a wrapped model of which the first of two blocks does not run."""
    model = wrap(original(), depth=[1, 2], leave=[0])
    sample_subnet(model, policy="smallest")
    return model


def test_a_name_of_digits_is_the_block_of_that_number():
    model = leaving()
    blocks = model.get_submodule("blocks")
    assert getattr(model.blocks, "1") is model.blocks[0] is next(iter(model.blocks)) is blocks[1]
    assert len(model.blocks) == len(model.blocks[:2]) == 1
    assert getattr(model.blocks[:1], "0") is blocks[1]  # a slice is a container of its own
    for name in ("2", "more"):
        with pytest.raises(AttributeError):
            getattr(model.blocks, name)


def test_functional_calls_put_tensors_where_their_names_say():
    model = leaving()
    own = dict(model.named_parameters())
    assert torch.equal(functional_call(model, own, (X,)), model(X))
    at_rest, runs = (
        {name: torch.zeros_like(own[name]) for name in own if name.startswith(prefix)} for prefix in ("blocks.0", "blocks.1")
    )
    assert torch.equal(functional_call(model, at_rest, (X,)), model(X))
    changed = functional_call(model, runs, (X,))
    assert not torch.equal(changed, model(X))
    with torch.no_grad():
        model.load_state_dict(runs, strict=False)
    assert torch.equal(changed, model(X))


def test_distributed_checkpoints_have_every_block():
    model = leaving()
    state = get_model_state_dict(model)
    assert state.keys() == model.state_dict().keys()
    set_model_state_dict(model, {name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert all((parameter == 0).all() for parameter in model.parameters())


# -- copies ------------------------------------------------------------------------------------------------------------


def test_copies_of_a_compiled_model_run_their_own_weights():
    model = narrow()
    model.compile(backend="eager")
    for twin in (copy.deepcopy(model), AveragedModel(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert (twin(X) == 0).all()  # the original, of random weights, would say something else
