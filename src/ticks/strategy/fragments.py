"""Fragments: which parameters travel together, where they travel in several parts (arXiv 2501.18512).

Layer l of the longest list of layers goes to fragment l mod P: strided, so that every fragment holds early and late
layers. What belongs to no layer joins the smallest fragment.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ticks.arguments import ArgumentError

LAYER = re.compile(r"(.*?)\.(\d+)\.")  # "model.blocks.3.ffn.weight": list "model.blocks", layer 3


def fragment_of(names: Sequence[str], sizes: Sequence[int], fragments: int | Sequence[Sequence[str]]) -> list[int]:
    """The fragment, from 0, of each parameter, given its name and its size.

    ArgumentError if there are more fragments than layers (or than parameters, where there is no list of layers), if a
    name matches no pattern, or if a fragment would be empty.
    """
    if not isinstance(fragments, int):
        for pattern in (pattern for patterns in fragments for pattern in patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                why = f": pattern {pattern!r} matches no parameter; there are {_some(names)}"
                raise ArgumentError("fragments", fragments, why)
        chosen = [_first_match(name, fragments) for name in names]
    elif fragments == 1:
        return [0] * len(names)
    else:
        chosen = _strided(names, sizes, fragments)
    if empty := sorted(set(range(fragments if isinstance(fragments, int) else len(fragments))) - set(chosen)):
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
    units = sorted({layer for layer in layers if layer is not None})
    if not units:  # no list of layers: every parameter is one
        layers, units = list(range(len(names))), list(range(len(names)))
    if fragments > len(units):
        raise ArgumentError("fragments", fragments, f"must be at most {len(units)}, the number of layers to share out")
    place = {unit: index % fragments for index, unit in enumerate(units)}
    chosen = [-1 if layer is None else place[layer] for layer in layers]
    loads = [sum(s for s, c in zip(sizes, chosen, strict=True) if c == f) for f in range(fragments)]
    for index, size in enumerate(sizes):
        if chosen[index] < 0:
            chosen[index] = loads.index(min(loads))
            loads[chosen[index]] += size
    return chosen


def layer_of(names: Sequence[str]) -> list[int | None]:
    """The layer of each parameter in the list of layers that has most of them; None for what is outside."""
    matches = [LAYER.match(f".{name}") for name in names]
    layers: dict[str, set[str]] = {}
    for match in matches:
        if match:
            layers.setdefault(match[1], set()).add(match[2])
    if not layers:
        return [None] * len(names)
    longest = max(layers, key=lambda prefix: len(layers[prefix]))
    return [int(match[2]) if match and match[1] == longest else None for match in matches]
