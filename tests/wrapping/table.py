"""The tables of docs/wrapping.md: which models of timm and of Hugging Face `wrap` takes, and how exactly.

    python -m tests.wrapping.table             # all of it, written into the page file by file: some minutes on one core
    python -m tests.wrapping.table eva Clip    # only timm's files and Hugging Face's classes with these words in their names

Every name of timm's transformers is built in full size on the meta device, wrapped, and a subnet of odd sizes is run there.
Of each class the smallest model of every make (its blocks of other classes) is then built with random weights, cut to three
blocks a stage, and compared in double precision: the largest subnet with the library's model, random subnets with their
exports, counts with torch's counter, and a subnet with the whole model in which the units that it leaves out are silent.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.contract import macs, randomize, relative_error
from vitas import check_records, count_flops, count_params, export_subnet, sample_subnet, search_space, wrap
from vitas.errors import ChoiceError, VitasError, WrapError
from vitas.wrapping.counted import image_of
from vitas.wrapping.plan import Plan, apply, refuse_unnamed
from vitas.wrapping.records import RECORDS
from vitas.wrapping.slots import name_of
from vitas.wrapping.stages import places_of, planned

PAGE = Path(__file__).parents[2] / "docs" / "wrapping.md"
START, END = "<!-- {}: python -m tests.wrapping.table -->\n", "<!-- end of {} -->"
EXACT = ("choices", "largest equal", "export", "counts", "silenced")
HEADS = {"timm": ("class", "names", "pretrained tags", "refused", "makes", *EXACT), "transformers": ("class", *EXACT)}

FILES = """
    vision_transformer vision_transformer_hybrid vitamin deit, eva, swin_transformer, swin_transformer_v2, naflexvit, beit,
    qwen3_vit, hiera, xcit, cait, pvt_v2, vision_transformer_sam, vision_transformer_relpos, twins, maxxvit, metaformer,
    mobilevit, fastvit, nextvit, crossvit, volo, tiny_vit, levit, efficientvit_mit, efficientvit_msra, pit, hieradet_sam2,
    lowformer, mvitv2, mobilenetv3, edgenext, davit, gcvit, efficientformer, efficientformer_v2, shvit, swiftformer,
    deepseek_vit, gemma4_vit, swin_transformer_v2_cr, nest, convit, tnt, csatv2, visformer, mobilenetv5, cpubone, iformer,
    coat
"""
"""timm's files with transformers; those that share a class stand together."""

MIXED = ("fastvit", "metaformer", "mobilenetv3", "mobilevit")
"""Files that hold other models too; a transformer there is one with a part of these names."""

ATTENTION = re.compile(r"Attention|MobileVit\w*Block")

MOST = 150_000_000
"""Parameters of a model that is built with weights."""


WISHES: tuple[dict[str, Any], ...] = ({"embed_dim": "auto", "depth": "auto"}, {"depth": "auto"}, {"embed_dim": "auto"}, {})
"""What is searched beside heads and MLPs; some classes take no width, or no depth."""


class Built(NamedTuple):
    """What became of a model in full size on the meta device."""

    name: str
    kind: str  # its class
    make: frozenset[str]  # the classes of its parts
    size: int  # parameters
    refused: str  # why; "" where it is taken
    choices: int


# -- names in full size ------------------------------------------------------------------------------------------------


def timm_models(files: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield each name of the transformers in timm's files, and the model on the meta device."""
    import timm

    present = timm.list_modules()
    for file in files:
        for name in timm.list_models(module=file) if file in present else ():
            with torch.device("meta"):
                model = timm.create_model(name)
            if file not in MIXED or any(ATTENTION.search(type(part).__name__) for part in model.modules()):
                yield name, model


def built(name: str, model: Any) -> Built:
    """Wrap a model on the meta device and run a subnet of odd sizes."""
    make = frozenset(name_of(type(part)) for part in model.modules() if name_of(type(part)) in RECORDS)
    size = sum(parameter.numel() for parameter in model.parameters())
    kind, refused, choices = type(model).__qualname__, "", 0
    try:
        choices = _narrowed(model)
    except VitasError as error:
        refused = _short(str(error))
    return Built(name, kind, make, size, refused, choices)


def _narrowed(model: Any) -> int:
    """Wrap a model on the meta device in place, run a subnet, and return the number of choices."""
    places = places_of(model, Plan(RECORDS))
    for wish in ({"embed_dim": ["61%", "100%"], "depth": "auto", "mlp_ratio": ["37%", "100%"]}, *WISHES):
        given = {"embed_dim": None, "depth": None, "num_heads": "auto", "mlp_ratio": "auto", **wish}
        per_stage = [{**given, "leave": None, "blocks": None}] * len(places)
        try:
            plan, _ = planned(model, places, per_stage, "cyclic", RECORDS)
        except ChoiceError:
            if wish == WISHES[-1]:
                raise
        else:
            break
    refuse_unnamed(model, plan)
    image = torch.empty(1, *image_of(model), device="meta")
    apply(plan.steps)
    space = search_space(model)
    space.activate(space.sample(torch.Generator().manual_seed(0)))
    with torch.no_grad():
        try:
            model.eval()(image)
        except Exception as error:
            raise WrapError(f"{type(model).__name__} cannot be wrapped: a subnet does not run ({error})") from error
    return len(space)


def _short(message: str) -> str:
    """Return why a model is refused, without what is said to everybody and what differs from block to block."""
    _, found, why = message.partition("\n")[0].partition("cannot be wrapped")
    why = (why if found else message).partition("; supported are")[0].lstrip(": ")
    return re.sub(r"\b\d+\b", "N", why[:120]).replace("|", "/") or "no record"


# -- small models with weights -----------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """How exactly a class is taken, the worst of its makes."""

    choices: int
    equal: bool
    export: float  # largest difference, max|a - b| / max|b|
    counted: bool
    silenced: float


def exact(model: Any) -> Exact:
    """Compare a wrapped model with the original, its exports, torch's counter and itself with silent units."""
    model = randomize(model.double()).eval()
    x = torch.randn(1, *image_of(model), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrapped = wished(model)
    space = search_space(wrapped)
    with torch.no_grad():
        equal = all(torch.equal(a, b) for a, b in zip(_tensors(wrapped(x)), _tensors(model(x)), strict=True))
    worst, counted = 0.0, True
    generator = torch.Generator().manual_seed(0)
    for policy in ("smallest", "random", "random"):
        sample_subnet(wrapped, policy=policy, generator=generator)
        export = export_subnet(wrapped)
        with torch.no_grad():
            pairs = zip(_tensors(export(x)), _tensors(wrapped(x)), strict=True)
            worst = max(worst, *(relative_error(a, b) for a, b in pairs))
        counted &= count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())
        counted &= count_flops(wrapped).total == macs(export, x)
    return Exact(len(space), equal, worst, counted, _silenced(wrapped, x))


def wished(model: nn.Module) -> nn.Module:
    """Return a model wrapped with everything searched that can be."""
    for wish in WISHES[:-1]:
        try:
            return wrap(model, **wish)
        except ChoiceError:
            continue
    return wrap(model)


def _silenced(wrapped: nn.Module, x: torch.Tensor) -> float:
    try:
        return check_records(wrapped, x, subnets=2)
    except WrapError as error:
        found = re.search(r"by (\S+);", str(error))
        assert found is not None
        return float(found[1])


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [value for value in (outputs.values() if hasattr(outputs, "values") else outputs) if torch.is_tensor(value)]


def cut(model: nn.Module) -> nn.Module:
    """Return a model of the same class with at most three blocks in each row."""
    lengths = [len(place.row._modules) for place in places_of(model, Plan(RECORDS))]
    depth = [[min(3, n), n] if n > 3 else None for n in lengths]
    if not any(depth):
        return model
    try:
        wrapped = wrap(model, num_heads=None, mlp_ratio=None, depth=depth if len(depth) > 1 else depth[0])
    except ChoiceError:  # a class whose depth cannot be searched
        return model
    return export_subnet(wrapped, search_space(wrapped).smallest())


# -- the page ----------------------------------------------------------------------------------------------------------


def line(models: Sequence[Built], tags: Counter[str], create: Callable[[str], nn.Module]) -> list[str]:
    """Return the cells of a class of timm."""
    taken = [one for one in models if not one.refused]
    reasons = Counter(one.refused for one in models if one.refused)
    refused = "; ".join(f"{n}: {reason}" for reason, n in reasons.most_common())
    names = _of(len(taken), len(models))
    pretrained = _of(sum(tags[one.name] for one in taken), sum(tags[one.name] for one in models))
    makes: dict[frozenset[str], Built] = {}
    for one in sorted(taken, key=lambda one: one.size):
        if one.size <= MOST or not makes:
            makes.setdefault(one.make, one)
    if not makes:
        return [names, pretrained, refused, *[""] * (1 + len(EXACT))]
    found = [exact(cut(create(one.name))) for one in makes.values()]
    choices = _range([one.choices for one in taken])
    return [names, pretrained, refused, str(len(found)), choices, *_cells(found)]


def _cells(found: Sequence[Exact]) -> list[str]:
    """Return the worst of several models: largest equal, export, counts, silenced."""
    equal, counted = ("yes" if all(flags) else "no" for flags in zip(*((f.equal, f.counted) for f in found), strict=True))
    export, silenced = (max(numbers) for numbers in zip(*((f.export, f.silenced) for f in found), strict=True))
    return [equal, f"{export:.0e}", counted, f"{silenced:.0e}"]


def _of(part: int, whole: int) -> str:
    return str(whole) if part == whole else f"{part} of {whole}"


def _range(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def timm_table(words: Sequence[str]) -> None:
    """Write timm's table, or the lines of what files hold that have one of these words in their names."""
    import timm

    tags = Counter(name.partition(".")[0] for name in timm.list_models(pretrained=True))
    for files in FILES.split(","):
        if words and not any(word in files for word in words):
            continue
        start, found = time.perf_counter(), dict[str, list[Built]]()
        for name, model in timm_models(files.split()):
            found.setdefault(type(model).__qualname__, []).append(built(name, model))
        for kind, models in found.items():
            write("timm", kind, line(models, tags, timm.create_model))
        print(f"{files.strip()}: {time.perf_counter() - start:.0f} s", flush=True)


def transformers_table(words: Sequence[str]) -> None:
    """Write the table of Hugging Face's transformers, where it is installed, from the small models of its tests."""
    if importlib.util.find_spec("transformers") is None:
        return
    from tests.wrapping.test_transformers import CLASSES, original

    for kind in CLASSES:
        if not words or any(word in kind for word in words):
            found = exact(original(kind)[0])
            write("transformers", kind, [str(found.choices), *_cells([found])])


def write(table: str, kind: str, cells: Sequence[str]) -> None:
    """Write the line of a class into a table of the page, the most used classes first."""
    start, end = START.format(table), END.format(table)
    before, _, rest = PAGE.read_text().partition(start)
    old, _, after = rest.partition(end)
    lines = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` \|(.*)\|$", old, flags=re.MULTILINE)}
    lines[kind] = "|".join(f" {cell} " for cell in cells)
    rows = [[f"`{kind}`", *(cell.strip() for cell in line.split("|"))] for kind, line in sorted(lines.items())]
    if table == "timm":
        rows.sort(key=lambda row: (-_counts(row[2])[1], -_counts(row[1])[1]))
        totals = [[sum(part) for part in zip(*(_counts(row[i]) for row in rows), strict=True)] for i in (1, 2)]
        shares = [f"**{part:,} of {whole:,} ({part / whole:.1%})**" for part, whole in totals]
        rows.append([f"**all {len(rows)}**", *shares, *[""] * (len(rows[0]) - 3)])
    rows = [[*HEADS[table]], ["---"] * len(HEADS[table]), *rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    PAGE.write_text(f"{before}{start}\n{text}\n\n{end}{after}")


def _counts(cell: str) -> tuple[int, int]:
    """Return how many are taken of how many."""
    part, _, whole = cell.partition(" of ")
    return int(part), int(whole or part)


def main(words: Sequence[str]) -> None:
    """Write the tables."""
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    timm_table(words)
    transformers_table(words)


if __name__ == "__main__":
    main(sys.argv[1:])
