"""A model compressed in one call: wrap, train with the original as teacher, search, export, fine-tune.

    compress.py   compress: the whole way, each step a public function that your own script can call instead
    school.py     how learners are taught by the original: from_teacher, the loss
    alike.py      networks whose blocks are all alike, which the search begins with
    training.py   the one training loop of the library, which goes on where it was stopped

Written to be copied and changed. Imports everything that stands before it; nothing imports it.
"""

from vitas.compressing.alike import alike
from vitas.compressing.compress import WRAP, Compressed, compress
from vitas.compressing.school import from_teacher
from vitas.compressing.training import train

__all__ = [
    "WRAP",
    "Compressed",
    "alike",
    "compress",
    "from_teacher",
    "train",
]
