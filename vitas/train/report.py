"""How well a superformer is trained: a table, a picture and a verdict."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas.checks import ANY_INT, are_several, as_count
from vitas.choice import SIDES, Dim
from vitas.cost.stated import StatesWeights
from vitas.errors import ChoiceError, needs, shown
from vitas.measure.accuracy import Accuracy
from vitas.measure.score import Score
from vitas.nn import Elastic
from vitas.plot.pictures import displayed
from vitas.sample import use_subnet
from vitas.sharing import coverage
from vitas.space import AnyChoice, Number, SearchSpace, Subnet, held, search_space, unwrap
from vitas.tables import html_table, pattern_of, text_table

_FEWEST = 8
"""Fewer scores say little of a standard deviation: over 8 normal ones it is known to about a quarter."""

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]


@dataclass(frozen=True)
class SupernetReport:
    """What `supernet_report` found; prints as a table with a verdict.

    Attributes:
        scores: Score of the "smallest", "middle" and "largest" subnet, with inherited weights.
        random: Scores of random subnets.
        updates: For each Dim by which weights are cut, how often each channel was (or is expected to be) used, (L,) each, as
            a part of the steps in which the Dim was live at all.
        passes: For each of these Dims the number of trained passes in which it was live; empty where `trained` was not
            given, and `updates` is what the prior leads to expect.
        spread: For each Dim the largest minus the smallest of `updates`, times the number of its widths: uses in as many
            draws as there are widths, which a fair pattern keeps at about 1 (ordinal sharing: the number of widths less 1).
        untouched: Names of values that no step used, such as "patch_size=2"; empty where nothing was counted.
        retrained: (inherited, retrained) scores of the networks that were retrained.
        tau: Kendall's tau-b between the two; None where fewer than two networks were given.
        images: How many images each score is an accuracy on; None where that is not known.
    """

    scores: Mapping[str, float]
    random: tuple[float, ...]
    updates: Mapping[str, NDArray[np.float64]]
    passes: Mapping[str, int]
    spread: Mapping[str, float]
    untouched: tuple[str, ...]
    retrained: tuple[tuple[float, float], ...]
    tau: float | None
    images: int | None = None

    @property
    def noise(self) -> float | None:
        """The standard deviation that the accuracy of one network has for want of images; None where `images` is.

        That of images drawn anew, which is the most: networks that are scored on the same images share a part of it.
        """
        if self.images is None or not self.random or not all(0 <= score <= 1 for score in self.random):
            return None
        return math.sqrt(sum(score * (1 - score) for score in self.random) / len(self.random) / self.images)

    @property
    def counted(self) -> bool:
        """Whether `updates` was counted, not expected."""
        return bool(self.passes)

    @property
    def verdict(self) -> str:
        """What this means, in words; the thresholds are ours and meant as a first look, not as a proof."""
        said = [self._on_training(), self._on_sharing()]
        if self.untouched:
            said.append(f"Never used in training: {', '.join(self.untouched)}; train longer or sample otherwise.")
        said += self._on_spread()
        said.append(self._on_ranking())
        return " ".join(said)

    def _on_training(self) -> str:
        smallest, middle, largest = (self.scores[name] for name in ("smallest", "middle", "largest"))
        if not all(math.isfinite(score) for score in (smallest, middle, largest, *self.random)):
            return "Some subnets score NaN or infinity: training has diverged."
        reach = max(largest, middle, smallest)
        if largest < 0.98 * reach:
            return "A smaller subnet scores above the largest: train longer, or let the largest teach the others (sandwich)."
        if smallest > 0.9 * reach > 0:
            easy = "the task is too easy to tell subnets apart" if smallest > 0.9 else "train longer"
            return f"Smallest and largest score about the same: {easy}."
        return "Larger subnets score higher, as they should."

    def _on_sharing(self) -> str:
        kind = "were" if self.counted else "are expected to be"
        uneven = [name for name, spread in self.spread.items() if spread > 1.5]
        if not self.spread:
            return "No width is searched."
        if not uneven:
            return f"Channels {kind} trained evenly (spread at most {max(self.spread.values()):.2g})."
        worst = max(uneven, key=lambda name: self.spread[name])
        low, high = self.updates[worst].min(), self.updates[worst].max()
        return (
            f"Channels {kind} trained unevenly in {len(uneven)} of {len(self.updates)} dimensions; in {worst} some in"
            f" {low:.0%} and some in {high:.0%} of the steps. A fair pattern under random draws is even: this comes of"
            " ordinal sharing, of subnets that run in every step (sandwich), of few steps, or of what `only` leaves out."
        )

    def _on_spread(self) -> list[str]:
        noise, n = self.noise, len(self.random)
        if noise is None or n < _FEWEST:
            return []
        spread = float(np.std(self.random, ddof=1))
        alone = f"of {self.images} images alone {100 * noise:.2g}"
        said = "hardly tell networks apart" if spread < 2 * noise else "tell networks apart, rightly or not"
        return [f"Standard deviation of {n} subnets {100 * spread:.2g} points, {alone}: scores {said}."]

    def _on_ranking(self) -> str:
        n = len(self.retrained)
        if self.tau is None:
            return "Whether inherited scores rank networks rightly is not known: retrain some and pass retrained=."
        if math.isnan(self.tau):
            return f"Inherited or retrained scores of {n} networks are all equal: they cannot be ranked."
        chance = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))  # standard deviation of tau where there is no relation
        shown = f"Kendall's tau {self.tau:.2f} over {n} networks"
        if self.tau < 2 * chance:
            return f"Inherited scores do not rank networks better than chance would ({shown}, by chance {chance:.2f})."
        how = "well" if self.tau >= 0.7 else "fairly" if self.tau >= 0.4 else "weakly"
        return f"Inherited scores rank networks {how} ({shown}, by chance {chance:.2f})."

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(name, f"{score:.4g}") for name, score in self.scores.items()]
        if self.random:
            low, middle, high = np.quantile(self.random, [0, 0.5, 1])
            rows.append((f"{len(self.random)} random", f"{low:.4g} to {high:.4g}, median {middle:.4g}"))
        kind = "updates" if self.counted else "expected updates"
        groups: dict[str, list[str]] = {}
        for name in self.updates:
            groups.setdefault(pattern_of(name), []).append(name)
        for pattern, names in groups.items():
            low, high = min(self.updates[name].min() for name in names), max(self.updates[name].max() for name in names)
            spread = max(self.spread[name] for name in names)
            rows.append((f"{kind} {pattern}", f"{low:.1%} to {high:.1%} of steps, spread {spread:.2g}"))
        if self.tau is not None:
            rows.append(("Kendall's tau", f"{self.tau:.3f} over {len(self.retrained)} networks"))
        return rows

    def __repr__(self) -> str:
        return f"{text_table(self._rows())}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return f"{html_table(self._rows())}<p>{escape(self.verdict)}</p>"

    def plot(self) -> Any:
        """Return a matplotlib Figure: scores, updates of each channel, inherited against retrained scores where given.

        Raises:
            VitasError: matplotlib is not installed.
        """
        with needs("plot"):
            from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5 * (3 if self.retrained else 2), 3.6), layout="constrained")
        axes = figure.subplots(1, 3 if self.retrained else 2)
        _draw_scores(axes[0], self)
        _draw_updates(axes[1], self)
        if self.retrained:
            axes[2].scatter(*zip(*self.retrained, strict=True), s=20, color="#0072B2")
            axes[2].set(xlabel="inherited score", ylabel="retrained score", title=f"Kendall's tau {self.tau:.2f}")
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
        return displayed(figure)


def _draw_scores(axes: Any, report: SupernetReport) -> None:
    for x, score in enumerate(report.scores.values()):
        axes.bar(x, score, width=0.6, color="#56B4E9")
        axes.annotate(f"{score:.3g}", (x, score), ha="center", va="bottom")
    names = list(report.scores)
    if report.random:
        jitter = np.linspace(-0.2, 0.2, len(report.random))
        axes.scatter(len(names) + jitter, report.random, s=12, color="#E69F00")
        names.append(f"{len(report.random)} random")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="score", title="Inherited scores")
    axes.margins(y=0.12)


def _draw_updates(axes: Any, report: SupernetReport) -> None:
    names = list(report.updates)
    for name in names[:1]:
        axes.plot(
            np.linspace(0, 1, len(report.updates[name])), report.updates[name], color="#0072B2", lw=2, label=name, zorder=3
        )
    for number, name in enumerate(names[1:]):
        label = f"{len(names) - 1} others" if number == 0 else None
        use = report.updates[name]
        axes.plot(np.linspace(0, 1, len(use)), use, color="grey", alpha=0.35, lw=1, label=label)
    axes.set(xlabel="channel (0: first, 1: last)", ylabel="part of the steps", ylim=(0, 1.05))
    axes.set_title(
        "How often each channel was trained" if report.counted else "How often each channel is trained (expected)"
    )
    if names:
        axes.legend(frameon=False, loc="lower right")


def supernet_report(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    n_random: int = 0,
    trained: Iterable[Mapping[str, Number]] | None = None,
    retrained: Mapping[Subnet, float] | None = None,
    images: int | None = None,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> SupernetReport:
    """Return how well a superformer is trained: scores, updates of each channel, rank agreement, and a verdict in words.

    Scores the smallest, the middle (the middle value of every choice) and the largest subnet; `n_random` more; and, with
    inherited weights, each that was retrained. What was active comes back. Bilateral subnets score the mean of both sides.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        evaluate: Called with the model while a subnet is active; returns its accuracy (or another score of which more is
            better), or a mapping with "accuracy".
        n_random: Number of random subnets to score.
        trained: The subnets that were trained, one for each pass, such as `sampler.sample(step, activate=False)` again for
            each step; a bilateral one counts half for each side. None: what the prior leads to expect.
        retrained: Score of networks that were trained from scratch; at least two for a tau.
        images: How many images each score is an accuracy on, by which the spread of the random subnets is judged; None:
            what `vitas.accuracy` says, and nothing of another function.
        seed: Seed of the random subnets.
        fixed: As in sample_subnet: smallest, middle, largest and random subnets, and what the prior leads to expect, keep to
            it; subnets that were trained or retrained need not.
        only: As in sample_subnet, likewise.

    Raises:
        ChoiceError: a model without choices, subnets of another space, a score, `n_random` or `images` that is not a number,
            an `evaluate` that is not a function or of which less is better; as `SearchSpace.restrict`.
    """
    n_random = as_count(n_random, "n_random", 0)
    if images is not None:
        images = as_count(images, "images", 1, ANY_INT)
    if not callable(evaluate):
        raise ChoiceError(f"evaluate: expected a function of the model, got {shown(evaluate)}")
    if isinstance(evaluate, Score) and evaluate.aim[1] == "min":
        raise ChoiceError(f"evaluate: of the {evaluate.name} less is better, here more; pass lambda model: -score(model)")
    space = search_space(model).restrict(fixed, only)
    middle = space.decode([numbers[len(numbers) // 2] for numbers in space.encoding.left])
    corners = {"smallest": space.smallest(), "middle": middle, "largest": space.largest()}
    generator = torch.Generator().manual_seed(seed)
    drawn = [space.sample(generator) for _ in range(n_random)]
    if retrained is not None and not isinstance(retrained, Mapping):
        raise ChoiceError(f"retrained: expected a mapping from subnets to scores, got {shown(retrained)}")
    scratch = [_number(value, "retrained") for value in (retrained or {}).values()]
    inherited = {subnet: space.whole.subnet(subnet) for subnet in retrained or {}}  # all checked before anything is scored
    sliced = _sliced(model)
    dims = {name: choice for name, choice in space.choices.items() if choice in sliced and isinstance(choice, Dim)}
    updates, passes, untouched = _expected(space, dims) if trained is None else _counts(space, dims, trained)

    def score(subnet: Subnet) -> float:
        return _mean_of_sides(model, space, subnet, evaluate)

    pairs = tuple((score(subnet), value) for subnet, value in zip(inherited.values(), scratch, strict=True))
    scores = {name: score(subnet) for name, subnet in corners.items()}
    random = tuple(score(subnet) for subnet in drawn)
    return SupernetReport(
        scores=scores,
        random=random,
        updates=updates,
        passes=passes,
        spread={name: float(np.ptp(use)) * len(space.values[name]) for name, use in updates.items()},
        untouched=untouched,
        retrained=pairs,
        tau=kendall_tau(*zip(*pairs, strict=True)) if len(pairs) > 1 else None,
        images=evaluate.images if images is None and isinstance(evaluate, Accuracy) else images,
    )


def _mean_of_sides(model: nn.Module, space: SearchSpace, subnet: Subnet, evaluate: Evaluate) -> float:
    """Return the score of a subnet; of a bilateral one the mean over its sides."""
    scores = []
    for side in SIDES if space.bilateral else (None,):
        with use_subnet(model, subnet, side=side):
            scores.append(_number(evaluate(model)))
    return sum(scores) / len(scores)


def _sliced(model: nn.Module) -> set[AnyChoice]:
    """Return the choices by which some layer cuts its weights; not a head count that only regroups channels."""
    parts = (part for part in unwrap(model).modules() if issubclass(type(part), StatesWeights))
    layers = (part for part in parts if not isinstance(part, Elastic) or part.axes())
    return {base for layer in layers for _, choice in held(layer) for base in choice.bases}


def _number(score: object, what: str = "evaluate") -> float:
    if isinstance(score, Mapping):
        if "accuracy" not in score:
            raise ChoiceError(f"evaluate: expected a number or a mapping with 'accuracy', got {shown(score)}")
        score = score["accuracy"]
    try:
        return float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ChoiceError(f"{what}: expected a number, got {shown(score)}") from None


_Uses = tuple[dict[str, NDArray[np.float64]], dict[str, int], tuple[str, ...]]


def _expected(space: SearchSpace, dims: Mapping[str, Dim]) -> _Uses:
    prior = dict(zip(space.choices, space.encoding.prior, strict=True))
    return {name: _use_by_channel(dim, prior[name]) for name, dim in dims.items()}, {}, ()


def _use_by_channel(dim: Dim, weights: Sequence[float]) -> NDArray[np.float64]:
    """Return how often each channel is used, (L,), where each width is used as often as it weighs; half for each side."""
    paths = coverage(dim).paths  # one row for each side and width
    return np.tile(np.array(weights) / len(dim.sides), len(dim.sides)) @ paths


def _counts(space: SearchSpace, dims: Mapping[str, Dim], trained: Iterable[Mapping[str, Number]]) -> _Uses:
    """Return the part of its live passes in which each channel was used, their number, and the values that none used."""
    uses: dict[str, dict[Number, int]] = {name: dict.fromkeys(choice.values, 0) for name, choice in space.choices.items()}
    for subnet in trained:
        for name, value in space.whole.subnet(subnet).items():
            uses[name][value] += 1
    passes = {name: sum(uses[name].values()) for name in dims}
    updates = {
        name: _use_by_channel(dim, [uses[name][value] / max(1, passes[name]) for value in dim.values])
        for name, dim in dims.items()
    }
    untouched = [f"{name}={value}" for name, values in space.values.items() for value in values if uses[name][value] == 0]
    return updates, passes, tuple(untouched)


def kendall_tau(a: Iterable[float], b: Iterable[float]) -> float:
    """Return Kendall's tau-b of two lists of scores: 1 where they rank alike, -1 where opposite; NaN where one is constant.

    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945).

    Args:
        a: Scores of some networks.
        b: Other scores of the same networks, in the same order.

    Raises:
        ChoiceError: lists that are not of numbers, or of different lengths.
    """
    for scores in (a, b):
        if not are_several(scores):
            raise ChoiceError(f"scores: expected two lists of numbers, got {shown(scores)}")
    first, second = (np.array([_number(score, "score") for score in scores]) for scores in (a, b))
    if len(first) != len(second):
        raise ChoiceError(f"scores: expected as many in both lists, got {len(first)} and {len(second)}")
    x, y = ((v[:, None] > v).astype(float) - (v[:, None] < v) for v in (first, second))  # infinities are equal to themselves
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / norm if norm else math.nan
