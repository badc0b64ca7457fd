"""Journals on disks that fail: what can be read is kept, the rest is said before anything is written."""

import json
import random
import sys
import warnings

import pytest

import vitas
from tests.search.small import SETTINGS, score, small_model  # noqa: F401  # a fixture
from vitas.errors import FileError, VitasError

pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytestmark = [pytest.mark.extras, pytest.mark.skipif(sys.platform == "win32", reason="flock")]

CREATED, ENDED = 4, 6


def told(result):
    return {evaluation.subnet: dict(evaluation.scores) for evaluation in result.history}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "search.log"
    return told(vitas.evolve(model, score, storage=path, **SETTINGS)), path.read_bytes().splitlines(True)


def kinds(lines):
    return [json.loads(line)["op_code"] for line in lines]


def go_on(model, tmp_path, lines):
    path = tmp_path / "search.log"
    path.write_bytes(b"".join(lines))
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        return score(model)

    return told(vitas.evolve(model, evaluate, storage=path, **SETTINGS)), len(calls)


@pytest.mark.parametrize("kept", [0.4, 0.7, 0.95])
def test_a_copy_that_was_cut_short_goes_on(model, whole, tmp_path, kept):
    scores, lines = whole
    content = b"".join(lines)
    again, calls = go_on(model, tmp_path, [content[: int(kept * len(content))]])
    assert again == scores
    assert 0 < calls < len(scores)


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"}}}\n", b"\xff\xfe\n", b'{"op_code":6,"trial_\n'])
def test_a_result_that_cannot_be_read_is_found_again(model, whole, tmp_path, damage):
    scores, lines = whole
    place = [place for place, kind in enumerate(kinds(lines)) if kind == ENDED][3]
    with pytest.warns(UserWarning, match=f"passed over a line that cannot be read, the first is number {place + 1};"):
        again, calls = go_on(model, tmp_path, [*lines[:place], damage, *lines[place + 1 :]])
    assert (again, calls) == (scores, 1)


def test_nuls_before_a_line_do_not_hide_it(model, whole, tmp_path):
    scores, lines = whole
    again = go_on(model, tmp_path, [*lines[:9], b"\0" * 4096 + lines[9], *lines[10:]])
    assert again == (scores, 0)


@pytest.mark.parametrize("kind", range(10))
def test_lines_that_stand_twice_count_once(model, whole, tmp_path, kind):
    scores, lines = whole
    twice = [again for line, k in zip(lines, kinds(lines), strict=True) for again in [line] * (1 + (k == kind))]
    assert go_on(model, tmp_path, twice) == (scores, 0)


@pytest.mark.parametrize("lost", ["line", "text"])
def test_a_lost_claim_is_refused_before_results_are_given_to_other_networks(model, whole, tmp_path, lost):
    _, lines = whole
    place = [place for place, kind in enumerate(kinds(lines)) if kind == CREATED][5]
    left = [*lines[:place], *([b"?\n"] if lost == "text" else []), *lines[place + 1 :]]
    sound = place + len(left) - len(lines) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(FileError, match=rf"line {sound + 1} .* not there, so lines .* `head -n {sound}`") as caught:
            go_on(model, tmp_path, left)
    assert (tmp_path / "search.log").read_bytes() == b"".join(left)
    assert "nothing was written" in str(caught.value)


def test_a_lost_claim_is_noticed_where_another_worker_took_its_number(model, whole, tmp_path):
    """Two workers claim, the first claim is lost, and the first worker's result would go to the network of the second."""
    _, lines = whole
    places = [place for place, kind in enumerate(kinds(lines)) if kind == CREATED][:2]
    second = json.loads(lines[places[1]])
    second["user_attrs"]["claim"][0], second["worker_id"] = "another", "other-1"
    first = json.loads(lines[places[0]])
    earlier = {**first, "user_attrs": {**first["user_attrs"], "claim": [*first["user_attrs"]["claim"][:1], 0.0]}}
    results = [line for line, kind in zip(lines, kinds(lines), strict=True) if kind == ENDED]
    late = {**json.loads(results[0]), "trial_id": 1}
    made = [json.dumps(log).encode() + b"\n" for log in (earlier, second, late)]  # the claim of number 1 stood between
    with pytest.raises(FileError, match="result of trial 1 by a worker that did not claim it"):
        go_on(model, tmp_path, [*lines[: places[0]], *made])


def test_whatever_is_lost_garbled_or_doubled_the_error_is_ours_and_scores_are_right(model, whole, tmp_path):
    _, lines = whole
    rng = random.Random(0)
    refused = 0
    for _ in range(25):
        left = list(lines)
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(1, len(left))
            deed = rng.choice(["lose", "double", "cut", "swap"])
            if deed == "lose":
                del left[place]
            elif deed == "double":
                left.insert(place, left[rng.randrange(place)])
            elif deed == "cut":
                left[place] = left[place][: rng.randrange(len(left[place]))] + rng.choice([b"", b"\n"])
            else:
                left[place - 1], left[place] = left[place], left[place - 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                again, _ = go_on(model, tmp_path, left)
            except VitasError:
                refused += 1
                assert (tmp_path / "search.log").read_bytes() == b"".join(left)
                continue
        assert all(found["accuracy"] == sum(subnet.values()) for subnet, found in again.items())
    assert 0 < refused < 25
