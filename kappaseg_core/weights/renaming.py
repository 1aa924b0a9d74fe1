"""From the parameter names of another program to ours, by a table, with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kappaseg_core.errors import UserError

Change = Callable[[Tensor], Tensor]
COUNTER = "num_batches_tracked"  # counts steps of training; files without it (frozen batch norm) compute the same


@dataclass(frozen=True)
class Rule:
    """Where the tensors of certain names go.

    theirs: regular expression for the whole name.   ours: our name, with \\1 … for its groups. Several: the tensor is
    cut along its first axis into as many equal parts, as a packed query-key-value matrix. None: it is dropped, and
    `why` says why nothing is lost. A name that ends in [0], [1], …: parts that are put together along the first axis.
    change: what is done to the numbers first.   cut: row at which it is cut into two parts, negative from the end.
    """

    theirs: str
    ours: str | tuple[str, ...] | None
    why: str = ""
    change: Change | None = None
    cut: int | None = None


@dataclass
class Renamed:
    """Tensors under our names, and what became of the others.

    origin: our name → the file's.   dropped: reason → the file's names.   unknown: the file's names without a rule.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


class Misfit(UserError):
    """A file that does not fit its network. listing: a line for every tensor that is missing, unknown or misshapen."""

    def __init__(self, message: str, listing: list[str]) -> None:
        super().__init__(message)
        self.listing = listing


def renamed(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> Renamed:
    """Every tensor by the first rule that its name matches. Two tensors for one of our names: the second is unknown."""
    table = [(re.compile(rule.theirs), rule) for rule in rules]
    found = Renamed()
    for name, tensor in tensors.items():
        match, rule = next(((m, r) for pattern, r in table if (m := pattern.fullmatch(name))), (None, None))
        if match is None or rule is None:
            found.unknown.append(name)
        elif rule.ours is None:
            found.dropped.setdefault(rule.why, []).append(name)
        else:
            names = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
            place(found, name, tensor, tuple(match.expand(ours) for ours in names), rule)
    return joined(found)


def place(found: Renamed, name: str, tensor: Tensor, ours: tuple[str, ...], rule: Rule) -> None:
    if any(target in found.tensors for target in ours):
        found.unknown.append(name)
        return
    try:
        changed = tensor if rule.change is None else rule.change(tensor)
        where = len(ours) if rule.cut is None else (rule.cut,)
        parts = (changed,) if len(ours) == 1 else changed.tensor_split(where)
    except (RuntimeError, IndexError):  # too few axes: `fitted` lists it with its shape
        parts = (tensor,) * len(ours)
    for target, part in zip(ours, parts, strict=True):
        found.tensors[target], found.origin[target] = part, name


def joined(found: Renamed) -> Renamed:
    """Put parts NAME[0], NAME[1], … together. A part that is alone keeps its name, and is unknown to the network."""
    for first in [name for name in found.tensors if name.endswith("[0]")]:
        whole = first.removesuffix("[0]")
        parts = sorted(name for name in found.tensors if re.fullmatch(re.escape(whole) + r"\[\d\]", name))
        if len(parts) > 1 and len({found.tensors[part].shape for part in parts}) == 1:
            found.tensors[whole] = torch.cat([found.tensors.pop(part) for part in parts])
            found.origin[whole] = ", ".join(found.origin.pop(part) for part in parts)
    return found


def spared(found: Renamed, wanted: Collection[str], spare: Mapping[str, str]) -> Renamed:
    """The same without tensors that the network `wanted` has no place for, where they are among the spare ones.

    spare: regular expression for our name → why nothing is lost.
    """
    left = {name: why for name in found.tensors if name not in wanted and (why := reason(name, spare))}
    dropped = {why: list(names) for why, names in found.dropped.items()}
    for name, why in left.items():
        dropped.setdefault(why, []).append(found.origin[name])
    kept = {name: value for name, value in found.tensors.items() if name not in left}
    return Renamed(kept, {name: found.origin[name] for name in kept}, dropped, found.unknown)


def begun(found: Renamed, wanted: Collection[str], new: Mapping[str, str]) -> dict[str, list[str]]:
    """Why → our names of the tensors of the network `wanted` that start anew: no file has them."""
    names: dict[str, list[str]] = {}
    for name in wanted:
        if name not in found.tensors and (why := reason(name, new)):
            names.setdefault(why, []).append(name)
    return names


def reason(name: str, reasons: Mapping[str, str]) -> str:
    """That of the first regular expression which the name matches; empty where there is none."""
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), "")


def fitted(
    found: Renamed, wanted: Mapping[str, Tensor], *, source: str, new: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors for a network whose state dict is `wanted`: all of them, in the same shapes. Raises Misfit.

    new: names that keep the network's own values.
    """
    kept = {name: value for name, value in wanted.items() if name.endswith(COUNTER) or name in new}
    tensors = {**kept, **found.tensors}
    groups = misfits(tensors, found, wanted)
    first = [f"{len(lines)} {kind}, first {lines[0]}" for kind, lines in groups.items() if lines]
    if first:
        listing = [f"{kind:<9}  {line}" for kind, lines in groups.items() for line in lines]
        raise Misfit(
            f"{source} does not fit its network: {'; '.join(first)}; nothing is written, the list is above", listing
        )
    return tensors


def misfits(tensors: Mapping[str, Tensor], found: Renamed, wanted: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What keeps tensors from being a state dict, in words, by kind. The file's names, where they are of the file."""
    foreign = [found.origin[name] for name in tensors if name not in wanted]
    return {
        "missing": [f"{name} ({shape(value)})" for name, value in wanted.items() if name not in tensors],
        "unknown": list(dict.fromkeys([*found.unknown, *foreign])),
        "misshapen": [
            f"{found.origin.get(name, name)} ({shape(tensors[name])}, wanted {shape(value)} for {name})"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
