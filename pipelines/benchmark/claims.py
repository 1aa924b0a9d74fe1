"""What the paper claims (He et al. 2022), held against what was measured.

| claim                            | in the paper                   | here                                     |
|----------------------------------|--------------------------------|------------------------------------------|
| the label loss helps             | Table 1, +MT over the baseline | baseline < MT                            |
| selecting labels helps           | Table 1, +LS over +MT          | MT < MT + LS (shared temperature)        |
| a temperature per rank helps     | Table 1, +RA over +LS          | MT + LS < MT + LS + RA                   |
| selecting beats the baseline     | Table 3                        | baseline < independent, baseline < joint |
| one network is as good as two    | Table 3                        | independent ≤ joint                      |
| known labels would gain far more | Fig. 3                         | joint or independent < oracle            |
| accuracy follows the ranker      | Table 2                        | weaker ranker < stronger ranker          |

Those of Table 3 once more for every other number of steps that a baseline was trained for.

A claim holds where both intervals of the difference lie above zero (pipelines.benchmark.compare), does not hold where
both lie below, and is otherwise not decided by these runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pipelines.benchmark.compare import Comparison, Difference
from pipelines.benchmark.records import Records, Value

#: rank scale with one temperature → the one that is the same but for a temperature per rank
SHARED = {"shared": "rank", "shared_norm": "layer_norm"}
#: Table 3: claim, role that should be better, role that should be worse
SCHEMES = (
    ("the independent scheme beats the baseline", "independent", "baseline"),
    ("the joint scheme beats the baseline", "joint", "baseline"),
    ("the joint scheme is at least as good as the independent one", "joint", "independent"),
)
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"


def claims(records: Records, comparison: Comparison) -> list[Value]:
    """Every claim that the benchmark's schemes can be held against, with verdict, difference and intervals."""
    made = []
    for claim, better, worse in pairs(records):
        found = comparison.difference(better, worse)
        if found is None:
            records.lacks(f"claim “{claim}”: {better} and {worse} have no measurements of the same seed")
            continue
        made.append({"claim": claim, "better": better, "worse": worse, "verdict": verdict(found), **found.plain()})
    return made


def verdict(found: Difference) -> str:
    return HOLDS if found.is_above else FAILS if found.is_below else OPEN


def pairs(records: Records) -> Iterator[tuple[str, str, str]]:
    """(claim, scheme that should be better, scheme that should be worse), as far as there are such schemes."""
    role = roles(records)
    wanted = (
        ("the label loss alone helps (MT)", "MT", "baseline"),
        ("selecting labels helps on top (MT + LS)", "MT+LS", "MT"),
        ("a temperature per rank helps on top (MT + LS + RA)", "MT+LS+RA", "MT+LS"),
        ("selection and a temperature per rank help on top of MT", "MT+LS+RA", "MT"),
        *SCHEMES,
        ("known labels would gain over the baseline", "oracle", "baseline"),
        ("known labels would gain over the joint scheme", "oracle", "joint"),
        ("known labels would gain over the independent scheme", "oracle", "independent"),
    )
    for claim, better, worse in wanted:
        if better in role and worse in role and role[better] != role[worse]:
            yield claim, role[better], role[worse]
        else:
            absent = ", ".join(name for name in (better, worse) if name not in role)
            why = f"no scheme that is {absent}" if absent else f"{better} and {worse} are one scheme"
            records.lacks(f"claim “{claim}”: {why}")
    for steps in other_steps(records, role.get("baseline")):
        longer = roles(records, steps)
        for claim, better, worse in SCHEMES:
            if better in longer and worse in longer:
                yield f"{claim}, {steps:,} steps", longer[better], longer[worse]
    by_ranker = rankers(records)
    if len(by_ranker) > 1:
        (weak, _), (strong, _) = by_ranker[0], by_ranker[-1]
        yield "accuracy follows the ranker (most accurate against least accurate)", strong, weak
    else:
        records.lacks("claim “accuracy follows the ranker”: fewer than two rankers of one independent scheme")


def other_steps(records: Records, baseline: str | None) -> list[int]:
    """For how many steps further baselines are trained, beside the one that the others are held against."""
    steps = {name: what["steps"] for name, what in all_facts(records).items() if is_baseline(what)}
    return sorted(set(steps.values()) - {steps[name] for name in steps if name == baseline})


def trained(what: Value, source: str) -> bool:
    """Whether a network was trained for this scheme, and is tested, on rankings of that source."""
    return what["of"] is None and what["train"] == what["test"] == source


def is_baseline(what: Value) -> bool:
    """Whether it is a plain network among all labels."""
    return trained(what, "complete") and what["labels"] == "none"


def roles(records: Records, steps: int | None = None) -> dict[str, str]:
    """What a scheme is in the paper's terms → the first scheme of the plan that is it.

    Read from what the measured networks are made of, not from their names. The baseline is a plain network, also where
    the benchmark compares with another scheme. MT is of the label head of the joint scheme, MT + LS too; MT + LS + RA
    differs from MT + LS in nothing but the rank scale, and is the joint scheme itself where there is no MT + LS.
    steps: among schemes of that many steps; None = of any number, the first of the plan.
    """
    found = {name: what for name, what in all_facts(records).items() if steps in (None, what["steps"])}
    role: dict[str, str] = {}

    def first(called: str, fits: Callable[[Value], bool]) -> None:
        match = next((name for name, what in found.items() if fits(what)), None)
        if match is not None:
            role[called] = match

    plain = [name for name, what in found.items() if is_baseline(what)]
    if plain:
        role["baseline"] = records.baseline if records.baseline in plain else plain[0]
    first("independent", lambda what: trained(what, "cache"))
    first("joint", lambda what: trained(what, "joint") and what["rank_scale"] not in SHARED)
    first("oracle", lambda what: trained(what, "oracle"))
    heads = {found[role["joint"]]["labels"]} if "joint" in role else {what["labels"] for what in found.values()}
    heads.discard("none")
    first("MT", lambda what: trained(what, "complete") and what["labels"] in heads)
    first("MT+LS", lambda what: trained(what, "joint") and what["labels"] in heads and what["rank_scale"] in SHARED)
    if "MT+LS" in role:
        alike = {**found[role["MT+LS"]], "rank_scale": SHARED[found[role["MT+LS"]]["rank_scale"]]}
        first("MT+LS+RA", lambda what: what == alike)
    elif "joint" in role:
        role["MT+LS+RA"] = role["joint"]
    return role


def all_facts(records: Records) -> dict[str, Value]:
    """Of every scheme that was measured, in the plan's order."""
    return {name: facts(records, name) for name in records.schemes if records.of(name)}


def facts(records: Records, scheme: str) -> dict[str, Any]:
    """What decides a scheme's role."""
    values = records.of(scheme)[0].values
    return {
        **values["network"], **values["source"], "kappa": values["kappa"], "inference": values["inference"],
        "of": records.schemes[scheme].get("of"),
    }  # fmt: skip


def rankers(records: Records) -> list[tuple[str, float]]:
    """(scheme, mean average precision of its ranker) of independent schemes that differ in the ranker alone, the least
    accurate first."""
    found: dict[str, tuple[str, float]] = {}
    first: Value | None = None
    for name, scheme in records.schemes.items():
        measured = records.of(name)
        if not measured or scheme.get("ranker") is None or scheme.get("of") is not None:
            continue
        kind = {**facts(records, name), "folds": scheme.get("folds")}
        first = first or kind
        if kind == first and scheme["ranker"] not in found:
            precision = [m.values["mAP_raw"] for m in measured if m.values["mAP_raw"] is not None]
            found[scheme["ranker"]] = name, sum(precision) / max(1, len(precision))
    return sorted(found.values(), key=lambda pair: pair[1])
