"""An interrupt between any two instructions leaves a subnet that is whole: the one before or the one after."""

import sys
from functools import partial

import pytest
import torch

import vitas


@pytest.fixture(scope="module", params=["cyclic", "bilateral"])
def model(request):
    torch.manual_seed(0)
    sharing = request.param
    return vitas.create_superformer("deit_micro", num_classes=3, img_size=8, depth=2, sharing=sharing)


def interrupted_at(number, step, names):
    """Run a step, interrupted at the instruction of this number in functions of these names; say whether it came to that."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_name in names and frame.f_code.co_filename.endswith(FILES):
            count += 1
            if count == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


FILES = ("space.py", "state.py", "dim.py")


def whole(space):
    return space.state().states, [choice.mark for choice in space.choices.values()]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a tracer that raises is switched off")
@pytest.mark.parametrize("deed", ["activate", "put_back"])
def test_an_interrupt_anywhere_leaves_a_whole_subnet(model, deed):
    space = vitas.search_space(model)
    space.activate(space.largest())
    large, state = whole(space), space.state()
    space.activate(space.smallest())
    small = whole(space)
    place, seen = 1, []
    while True:
        if deed == "activate":
            space.activate(space.largest())
            stopped = interrupted_at(place, partial(space.activate, space.smallest()), {"activate", "_restore", "restore"})
        else:
            space.activate(space.smallest())
            stopped = interrupted_at(place, state.put_back, {"_restore", "restore"})
        seen.append(whole(space))
        assert seen[-1] in (large, small)
        if not stopped:
            break
        place += 7
    assert len(seen) > 10
    before, after = (large, small) if deed == "activate" else (small, large)
    first = seen.index(after)
    assert seen == [before] * first + [after] * (len(seen) - first)  # what was begun is done to its end
