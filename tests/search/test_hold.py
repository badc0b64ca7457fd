"""Searches in a part of the space."""

import numpy as np
import pytest
import torch

import vitas
from tests.search.test_evolution import made_up, micro
from vitas import ChoiceError, Evolution, evolve, search_space, suggest_subnet
from vitas.errors import SearchError
from vitas.search.genetic import Genome, mutate, repair

GIVEN = {"fixed": {"depth": 3, "patch_size": "largest"}, "only": {"blocks.*.num_heads": [4], "blocks.*.mlp_dim": [48, 192]}}


@pytest.fixture(scope="module")
def model():
    return micro()


def asked_and_told(evolution, n):
    found = []
    for _ in range(n):
        for subnet in evolution.ask():
            found.append(subnet)
            evolution.tell(subnet, made_up(subnet))
    return found


def test_all_that_is_asked_for_is_left_and_inside_the_budget(model):
    evolution = Evolution(model, flops=("10%", "40%"), population=10, seed=1, **GIVEN)
    part = search_space(model).restrict(**GIVEN)
    low, high = evolution.result().windows["flops"]
    asked = asked_and_told(evolution, 80)
    assert len(set(asked)) == len(asked) == 80
    assert all(subnet in part and low <= vitas.count_flops(model, subnet).total <= high for subnet in asked)


def test_a_small_part_is_asked_for_whole_and_then_nothing(model):
    given = {"fixed": {"*": "smallest"} | {"depth": "smallest"}}
    assert asked_and_told(Evolution(model, **given), 3) == [search_space(model).smallest()]
    given = {"fixed": {"depth": 1, "blocks.*": "largest"}, "only": {"embed_dim": [32, 96]}}
    asked = asked_and_told(Evolution(model, population=2, **given), 10)
    assert len(asked) == search_space(model).restrict(**given).size == 4


def test_what_is_told_has_to_be_left(model):
    evolution = Evolution(model, fixed={"depth": 2})
    with pytest.raises(ChoiceError, match=r"depth: expected 2, got 6 .nearest: 2.; fixed or only holds it"):
        evolution.tell(search_space(model).largest(), 1.0)
    with pytest.raises(ChoiceError, match="fixed: unknown choice"):
        Evolution(model, fixed={"dept": 2})


def test_operators_work_on_the_ranks_of_what_is_left(model):
    part = search_space(model).restrict(**GIVEN)
    genome, rng = Genome.of(part), np.random.default_rng(0)
    assert genome.sizes.tolist() == [len(values) for values in part.values.values()]
    ranks = genome.draw(500, rng)
    codes = part.canonical(genome.codes(ranks))
    assert part.encoding.holds(codes).all()
    assert np.array_equal(genome.ranks(codes), np.where(codes < 0, -1, ranks))
    largest = search_space(model).encode(search_space(model).largest())
    assert genome.ranks(largest[None])[0, list(part.choices).index("depth")] == -1  # 6 is not left
    mutants = mutate(ranks, codes >= 0, genome, rng)
    assert ((mutants >= 0) & (mutants < genome.sizes)).all()
    assert (mutants == ranks)[:, genome.sizes == 1].all()
    assert 0.5 < (mutants != ranks).sum(axis=1).mean() < 1.5

    def are_left(found):
        return part.encoding.holds(part.canonical(genome.codes(found)))

    assert repair(ranks[0], codes[0] >= 0, genome, are_left, rng) is not None
    assert repair(ranks[0], (codes[0] >= 0) & (genome.sizes == 1), genome, are_left, rng) is None


@pytest.mark.extras
def test_a_search_keeps_to_what_is_left_and_its_storage_to_the_search(model, tmp_path):
    options = {"population": 4, "generations": 2, "progress": False, "storage": str(tmp_path / "log")}
    part = search_space(model).restrict(**GIVEN)
    result = evolve(model, lambda model: made_up(vitas.active_subnet(model)), **options, **GIVEN)
    assert len(result.history) == 8
    assert all(found.subnet in part for found in result.history)
    more = evolve(model, lambda model: made_up(vitas.active_subnet(model)), **{**options, "generations": 3}, **GIVEN)
    assert more.history[:8] == result.history
    with pytest.raises(SearchError, match="differs in values left"):
        evolve(model, made_up, **options)
    with pytest.raises(SearchError, match="differs in values left"):
        evolve(model, made_up, **options, fixed={"depth": 2})


@pytest.mark.extras
def test_a_storage_from_before_there_were_held_choices_goes_on(model, tmp_path, monkeypatch):
    options = {"population": 4, "progress": False, "storage": str(tmp_path / "log")}
    facts = vitas.search.run._facts
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitas.search.run._facts", lambda *given: {k: v for k, v in facts(*given).items() if k != "values left"}
        )
        evolve(model, lambda model: 1.0, generations=1, **options)
    assert len(evolve(model, lambda model: 1.0, generations=2, **options).history) == 8


@pytest.mark.extras
def test_suggestions_are_of_what_is_left(model):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    part = search_space(model).restrict(**GIVEN)
    for _ in range(10):
        trial = study.ask()
        subnet = suggest_subnet(trial, model, **GIVEN)
        assert subnet in part
        assert part.subnet(trial.params) == subnet
        study.tell(trial, torch.rand(()).item())
    assert trial.distributions["blocks.0.mlp_dim"].choices == (48, 192)
    with pytest.raises(ChoiceError, match="only: no choice matches"):
        suggest_subnet(study.ask(), model, only={"*.heads": [2]})
