"""Replies to fixed cases as endpoints: the CPU's half of scoring, apart from `scoring` so that it needs no JAX.

Reading a picture takes some milliseconds of one core. Judged in other processes, an accelerator need not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from experiments.ablations.endpoints import DRAWN, ENDPOINTS
from experiments.ablations.results import Cases
from internvlu_jax.evaluation.scores import share
from internvlu_jax.small_world.scenes.world import WORLDS
from internvlu_jax.small_world.scoring.suite import KEYS, Outcome, Query, Reply, run

SETS = tuple(name for name, keys in KEYS.items() if set(keys) <= set(ENDPOINTS))
"""The sets of cases whose scores are endpoints."""


def world_of(world: str, name: str) -> str:
    """The world that the cases of a set are taken from, where training in `world` shows only one of XS and its twin.

    Cases of transfer are those of the world that has some, in both; so are the combinations that neither draws.
    """
    if world in ("xs", "xs-transfer") and name.startswith(("transfer_", "geneval_")):
        return "xs-transfer" if name.startswith("transfer_") else "xs"
    return world


Measured = tuple[dict[str, float], dict[str, Cases]]
"""Endpoints by their names, and the cases of those that are means of cases."""


def cases_name(world: str, name: str, count: int, case_seed: int) -> str:
    """Of fixed cases in results: which cases they are, whatever was measured of them."""
    return f"{world_of(world, name)} {name} {count} seed {case_seed}"


def judged(world: str, name: str, count: int, case_seed: int, replies: Sequence[Reply], side: int = 64) -> Measured:
    """The endpoints of one set of cases. Arguments and result can go to another process and back.

    "relations" comes with "questions", where the world has such questions; with the gain from reasoning come the shares
    that it is the difference of.

    Args:
        world: one of `WORLDS`.
        name: one of `SETS`.
        replies: to `suite.queries` of the same arguments, in their order, call after call.
        side: pixels of the pictures that the model was shown.

    Raises:
        ValueError: the set is none of `SETS`, or there are more or fewer replies than queries.
    """
    if name not in SETS:
        raise ValueError(f"the set of cases is {name!r}; expected one of {', '.join(SETS)}")
    left = list(replies)

    def replayed(queries: Sequence[Query]) -> list[Reply]:
        if len(left) < len(queries):
            raise ValueError(f"{len(replies)} replies to {count} cases of {name}; expected one to each query")
        taken = left[: len(queries)]
        del left[: len(queries)]
        return taken

    result = run(WORLDS[world_of(world, name)], name, count, replayed, side, case_seed)
    if left:
        raise ValueError(f"{len(replies)} replies to {count} cases of {name}; expected one to each query")
    endpoints = {key: report.score.value for key, report in result.reports.items()} | _relations(name, result.outcomes)
    if name == "reasoning":
        parts = result.reports["reasoning_gain"].parts
        endpoints |= {"riddles": parts["without"].value, "riddles_reasoned": parts["with"].value}
    return endpoints, _cases(name, cases_name(world, name, count, case_seed), result.outcomes)


def _relations(name: str, outcomes: Sequence[Outcome]) -> dict[str, float]:
    rights = [outcome.verdict.right for outcome in outcomes if "relation" in outcome.categories]
    return {"relations": share(rights).value} if name == "questions" and rights else {}


def _cases(name: str, title: str, outcomes: Sequence[Outcome]) -> dict[str, Cases]:
    """Right or wrong, case by case; not of reasoning, whose score is a difference."""
    if name == "reasoning":
        return {}
    rights = tuple(float(outcome.verdict.right) for outcome in outcomes)
    kinds = [outcome.categories[0] for outcome in outcomes] if name in DRAWN else []
    letters = dict(zip(dict.fromkeys(kinds), ascii_lowercase, strict=False))
    return {KEYS[name][0]: Cases(title, rights, "".join(letters[kind] for kind in kinds))}
