"""Fragments: which parameters travel together, where they travel in several parts (arXiv 2501.18512).

Layer l goes to fragment l mod P, counted through all lists of layers (an encoder's, then a decoder's): strided, so that
every fragment holds early and late layers. What belongs to no layer joins the smallest fragment.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ticks.arguments import ArgumentError

LAYER = re.compile(r"(.*?)\.(\d+)\.")  # "model.blocks.3.ffn.weight": list "model.blocks", layer 3


def fragment_of(names: Sequence[str], sizes: Sequence[int], fragments: int | Sequence[Sequence[str]]) -> list[int]:
    """The fragment, from 0, of each parameter, given its name and its size.

    A number of fragments is as many as there are layers (parameters, where there is no list of layers) if those are
    fewer. ArgumentError if a name matches no pattern, or if the fragment of some patterns would be empty.
    """
    if isinstance(fragments, int):
        return [0] * len(names) if fragments == 1 else _strided(names, sizes, fragments)
    for pattern in (pattern for patterns in fragments for pattern in patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            why = f": pattern {pattern!r} matches no parameter; there are {_some(names)}"
            raise ArgumentError("fragments", fragments, why)
    chosen = [_first_match(name, fragments) for name in names]
    if empty := sorted(set(range(len(fragments))) - set(chosen)):
        raise ArgumentError("fragments", fragments, f": nothing would be in fragment {empty[0]}")
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _first_match(name: str, fragments: Sequence[Sequence[str]]) -> int:
    for index, patterns in enumerate(fragments):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return index
    raise ArgumentError("fragments", [list(p) for p in fragments], f": parameter {name!r} matches none of them")


def _strided(names: Sequence[str], sizes: Sequence[int], fragments: int) -> list[int]:
    layers = layer_of(names)
    if set(layers) <= {None}:  # no list of layers: every parameter is one
        layers = list(range(len(names)))
    n = min(fragments, len(set(layers) - {None}))
    chosen = [-1 if layer is None else layer % n for layer in layers]
    loads = [sum(s for s, c in zip(sizes, chosen, strict=True) if c == f) for f in range(n)]
    for index, size in enumerate(sizes):
        if chosen[index] < 0:
            chosen[index] = loads.index(min(loads))
            loads[chosen[index]] += size
    return chosen


def layer_of(names: Sequence[str]) -> list[int | None]:
    """The layer of each parameter, from 0, counted through the lists of layers in the order of the names; None for what
    is outside. A list inside a layer is no list of layers."""
    matches = [LAYER.match(f".{name}") for name in names]
    lists: dict[str, set[int]] = {}
    for match in matches:
        if match:
            lists.setdefault(match[1], set()).add(int(match[2]))
    layers = [(prefix, number) for prefix, numbers in lists.items() for number in sorted(numbers)]
    places = {layer: place for place, layer in enumerate(layers)}
    return [places[match[1], int(match[2])] if match else None for match in matches]
