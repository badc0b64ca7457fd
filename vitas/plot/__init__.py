"""Pictures: cards for notebooks as HTML, the rest drawn with matplotlib (extra `plot`).

    template.py  the HTML of a card
    cards.py     HTML cards of subnets, spaces and differences; they need no matplotlib
    pictures.py  searches, sharing and training as pictures

Imports what stands before it but no wrapping; jinja2 and matplotlib are imported when used.
"""

from vitas.plot.cards import Card, difference_card, space_card, subnet_card
from vitas.plot.pictures import coverage_map, training_curves

__all__ = [
    "Card",
    "coverage_map",
    "difference_card",
    "space_card",
    "subnet_card",
    "training_curves",
]
