"""All choices of a model: found, named, drawn, activated.

    table.py     a space as a table; numbers in words
    subnet.py    Subnet: one value for each live choice, a frozen mapping that travels as JSON
    model.py     a model from outside: its wrappers, device, mode and arguments
    walk.py      the one walk over modules: who holds which choice, and when does it run
    naming.py    names and ties: what stands twice, or in two models, is refused
    liveness.py  which choices are live
    left.py      what values are left: `fixed` and `only`
    codes.py     subnets as vectors of ints
    state.py     what is active, to be put back
    space.py     SearchSpace and search_space, the only door to all choices
    change.py    narrow and widen: values that leave a trained space, or join it

A subnet has two forms: a `Subnet` of names and values, and a code, the vector of ints that `SearchSpace.encode` makes.

Knows no layer: whoever holds a Choice is found by walking. Imports choice and what stands before it.
"""

from vitas.space.change import all_or_nothing, narrow, widen
from vitas.space.codes import codes_of
from vitas.space.left import named
from vitas.space.model import StatesCost, arguments_of, device_of, eval_mode, logits_of, needs_tokens, unwrap
from vitas.space.space import BASE_LAYER, SearchSpace, search_space
from vitas.space.state import State
from vitas.space.subnet import Number, Subnet, TableRow
from vitas.space.table import readable_amount, readable_size
from vitas.space.walk import AnyChoice, Gate, gated_children, held, holders

__all__ = [
    "BASE_LAYER",
    "AnyChoice",
    "Gate",
    "Number",
    "SearchSpace",
    "State",
    "StatesCost",
    "Subnet",
    "TableRow",
    "all_or_nothing",
    "arguments_of",
    "codes_of",
    "device_of",
    "eval_mode",
    "gated_children",
    "held",
    "holders",
    "logits_of",
    "named",
    "narrow",
    "needs_tokens",
    "readable_amount",
    "readable_size",
    "search_space",
    "unwrap",
    "widen",
]
