"""What a search knows, as the processes that work on it use it."""

import pytest

import vitas
from vitas.search.archive import Archive
from vitas.search.result import Evaluation


@pytest.fixture(scope="module")
def model():
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


def test_what_is_reserved_is_not_a_candidate_until_it_is_released(model):
    archive = Archive(model, flops="50%", population=4)
    code = archive.candidate()
    archive.reserve(code)
    assert code in archive
    assert not archive.is_evaluated(code)
    assert len(archive) == 1
    other = archive.candidate()
    assert other.tobytes() != code.tobytes()
    archive.release(code)
    assert code not in archive
    assert archive.candidate().tobytes() == code.tobytes()
    archive.release(code)  # as claims are given up twice


def test_only_what_has_scores_becomes_a_parent(model):
    archive = Archive(model, population=2)
    subnets = vitas.Evolution(model, seed=1).ask(4)
    codes = [archive.space.encode(subnet) for subnet in subnets]
    for code, subnet, score in zip(codes, subnets[:3], (1.0, 3.0, 2.0), strict=False):
        archive.record(code, Evaluation(subnet, {"accuracy": score}))
    archive.record(codes[3], Evaluation(subnets[3], error="broken"))
    assert all(map(archive.is_evaluated, codes))
    assert [key for key, _, _ in archive.best] == [codes[1].tobytes(), codes[2].tobytes()]
    assert [evaluation.subnet for evaluation in archive.result().history] == subnets
    assert archive.counts(codes[0])["flops"] == vitas.count_flops(model, subnets[0]).total
