import itertools

import numpy as np
import pytest

import vitas
from vitas.search.genetic import Genome, crossover, crowding_distance, hypervolume, mutate, nondominated, ranked, repair


@pytest.fixture(scope="module")
def space():
    return vitas.search_space(vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1))


def drawn(space, n, seed=0):
    rng = np.random.default_rng(seed)
    return space.canonical(Genome.of(space).draw(n, rng)), rng


def test_choices_of_one_block_travel_together(space):
    genome = Genome.of(space)
    blocks = {}
    for name, block in zip(space.choices, genome.block, strict=True):
        blocks.setdefault(block, set()).add(name)
    words = ("num_heads", "qkv_dim", "mlp_dim")
    expected = [{"embed_dim"}, {"patch_size"}, {"depth"}, *({f"blocks.{i}.{word}" for word in words} for i in range(6))]
    assert sorted(map(sorted, blocks.values())) == sorted(map(sorted, expected))


def free_space(choices):
    """A space of choices that are always live."""
    return vitas.SearchSpace({name: (choice, [()]) for name, choice in choices.items()})


def test_stages_and_their_blocks_are_blocks_of_their_own():
    names = ("stages.0.embed_dim", "stages.0.depth", "stages.0.blocks.1.mlp_dim", "stages.0.blocks.1.num_heads", "w")
    stages = free_space({name: vitas.Choice([1, 2]) for name in names})
    assert Genome.of(stages).block.tolist() == [0, 0, 1, 1, 2]


def test_draws_follow_the_priors():
    model = vitas.nn.ElasticMlp(vitas.Dim([2, 4, 6], p=[0.5, 0.2, 0.3]), vitas.Dim([3, 5]))
    genome = Genome.of(vitas.search_space(model))
    codes = genome.draw(20000, np.random.default_rng(0))
    assert codes.min() == 0
    three = np.flatnonzero(genome.sizes == 3)[0]
    assert np.bincount(codes[:, three]) / 20000 == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    assert codes[:, 1 - three].max() == 1


def test_canonical_vectors_are_those_of_their_subnets(space):
    codes, _ = drawn(space, 200)
    for code in codes:
        assert (space.encode(space.decode(code)) == code).all()
    assert (codes == -1).any()


def test_a_child_has_each_block_from_one_parent(space):
    genome = Genome.of(space)
    codes, rng = drawn(space, 400)
    first, second = codes[:200], codes[200:]
    children = crossover(first, second, genome, rng)
    assert (children >= 0).all()
    assert (children < genome.sizes).all()
    sources = np.zeros(2, dtype=int)
    for block in range(genome.block.max() + 1):
        genes = genome.block == block
        both = (first[:, genes] >= 0).all(axis=1) & (second[:, genes] >= 0).all(axis=1)
        of_first = (children[:, genes] == first[:, genes]).all(axis=1)
        of_second = (children[:, genes] == second[:, genes]).all(axis=1)
        assert (of_first | of_second)[both].all()
        one = (first[:, genes] >= 0).all(axis=1) & ~both  # only one parent has the block: its genes, from wherever
        assert of_first[one].all()
        sources += [(of_first & ~of_second & both).sum(), (of_second & ~of_first & both).sum()]
    assert (sources > 0.3 * sources.sum()).all()  # two points: a third of the blocks from the second; else a half


def test_half_of_the_children_have_what_lies_between_two_points(space):
    """With 9 blocks the other half, where each block has an even chance, has one run of blocks 46 times in 512."""
    genome = Genome.of(space)
    first = np.zeros((4000, len(genome.sizes)), dtype=np.int64)
    children = crossover(first, first + 1, genome, np.random.default_rng(0))
    starts = np.unique(genome.block, return_index=True)[1]
    runs = (np.diff(children[:, starts], axis=1, prepend=0) == 1).sum(axis=1)
    assert (runs <= 1).mean() == pytest.approx((1 + 46 / 512) / 2, abs=0.04)


def test_mutation_changes_about_one_live_number(space):
    genome = Genome.of(space)
    codes = genome.draw(3000, np.random.default_rng(0))
    live = space.liveness.of(codes)
    mutants = mutate(codes, live, genome, np.random.default_rng(1))
    changed = mutants != codes
    assert not changed[~live].any()
    assert (mutants >= 0).all()
    assert (mutants < genome.sizes).all()
    assert changed.sum(axis=1).mean() == pytest.approx(1, abs=0.06)
    place = list(space.choices).index("embed_dim")  # a block of its own, as likely as each other block
    assert changed[:, place].mean() == pytest.approx((1 / (3 + live[:, 3:].sum(axis=1) / 3)).mean(), abs=0.02)
    jumps = np.abs(mutants - codes)[changed]
    assert (jumps > 1).any()


def test_repair_finds_a_code_inside_and_near(space):
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    sampler = vitas.SubnetSampler(model, flops=("30%", "40%"))
    genome = Genome.of(space)
    rng = np.random.default_rng(0)

    def inside(codes):
        return sampler.contains(space.canonical(codes))

    outside = [code for code in genome.draw(300, rng) if not inside(code[None])[0]][:60]
    steps = []
    for code in outside:
        live = space.liveness.of(code[None])[0]
        mended = repair(code, live, genome, inside, rng)
        if mended is not None:  # no change of width makes up for patches four times as large
            assert inside(mended[None])[0]
            assert (mended >= 0).all()
            assert (mended < genome.sizes).all()
            steps.append((mended != code)[live].sum())
    assert len(steps) > 40
    assert np.median(steps) < 8
    near = repair(code, live, genome, lambda codes: np.ones(len(codes), dtype=bool), rng)
    assert np.square(near - code)[live].sum() <= 1  # of all copies the nearest
    live = space.liveness.of(outside[0][None])[0]
    nothing = repair(outside[0], live, genome, lambda codes: np.zeros(len(codes), bool), rng)
    assert nothing is None


def test_repair_changes_one_to_four_numbers_of_half_of_the_copies():
    choices = {f"blocks.{k}.mlp_dim": vitas.Choice(range(1, 5001)) for k in range(8)}
    genome = Genome.of(free_space(choices))
    code, seen = np.full(8, 2500), []

    def refuse(codes):
        seen.append(codes)
        return np.zeros(len(codes), dtype=bool)

    live = np.arange(8) < 7
    assert repair(code, live, genome, refuse, np.random.default_rng(0), tries=(8000,)) is None
    few, many = np.split(seen[0] != code, 2)
    assert not few[:, ~live].any()
    counts = np.bincount(few.sum(axis=1), minlength=8)
    np.testing.assert_allclose(counts / 4000, [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 0, 0, 0], atol=0.03)
    assert many.sum(axis=1).mean() == pytest.approx(0.8 * 8, abs=0.2)
    moved = np.sign(seen[0][4000:] - code)
    assert ((moved >= 0).all(axis=1) | (moved <= 0).all(axis=1)).all()  # all in one direction


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objectives", [2, 3])
def test_ranks_equal_those_of_the_definition(objectives):
    rng = np.random.default_rng(objectives)
    values = rng.integers(0, 6, (40, objectives)).astype(float)
    violations = np.where(rng.random(40) < 0.3, rng.random(40), 0.0)
    rank, left = {}, {i for i in range(40) if violations[i] == 0}
    for number in itertools.count():
        if not left:
            break
        front = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        rank.update(dict.fromkeys(front, number))
        left -= front
    order = ranked(values, violations).tolist()
    assert sorted(order) == list(range(40))
    good = [i for i in order if violations[i] == 0]
    assert order[: len(good)] == good
    assert [rank[i] for i in good] == sorted(rank[i] for i in good)
    for number in set(rank.values()):  # inside a rank the lonely come first
        front = [i for i in good if rank[i] == number]
        distance = dict(zip(sorted(front), crowding_distance(values[sorted(front)]), strict=True))
        assert [distance[i] for i in front] == sorted(distance.values(), reverse=True)
    assert np.all(np.diff(violations[order[len(good) :]]) >= 0)
    assert nondominated(values).tolist() == [not any(dominates(b, a) for b in values) for a in values]


def test_a_small_objective_beside_a_large_one_still_counts():
    values = np.array([[1.7e10, 2.3000010], [1.7e10, 2.3000002]])  # their sums are equal in double precision
    assert nondominated(values).tolist() == [False, True]
    assert nondominated(values[:, ::-1]).tolist() == [False, True]


def test_one_objective_is_ranked_by_value_then_by_age():
    assert ranked(np.array([[3.0], [1.0], [2.0], [1.0], [0.0]]), np.array([0, 0, 0, 0, 2.0])).tolist() == [1, 3, 2, 0, 4]


def test_crowding_distance_of_a_front_worked_out_by_hand():
    points = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 2.0], [10.0, 0.0]])
    assert crowding_distance(points).tolist() == pytest.approx([np.inf, 4 / 10 + 8 / 10, 9 / 10 + 6 / 10, np.inf])


def test_both_ends_of_every_objective_are_infinitely_lonely():
    points = np.array([[0.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 2.5, 2.5], [3.0, 1.0, 2.2], [4.0, 2.2, 1.0]])
    assert np.isinf(crowding_distance(points)).tolist() == [True, True, False, True, True]
    assert np.isinf(crowding_distance(points[[2, 4, 0]])).all()
    worst_only = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])  # the last is no one's best
    assert np.isinf(crowding_distance(worst_only)).tolist() == [True, False, True]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_counts_the_cells_of_a_grid(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 7, (12, objectives)).astype(float)
    reference = np.full(objectives, 6.0)
    cells = itertools.product(range(6), repeat=objectives)
    expected = sum(any((point <= cell).all() for point in points) for cell in map(np.array, cells))
    assert hypervolume(points, reference) == pytest.approx(expected)
    assert hypervolume(np.empty((0, objectives)), reference) == 0
