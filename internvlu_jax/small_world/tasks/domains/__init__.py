"""The domains of the world, one module or package each: `TASKS` names what it makes (`example.Maker`).

A new domain is one more module with its own `TASKS` and one more line here. Its scenes need nothing but a `draw(side)`.
Some are made of topics: modules with a `TOPIC`, from which `things.tasks` makes pictures, reasoning and questions.
"""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.small_world.tasks.domains import general, humour, reasoning, science, spatial, text
from internvlu_jax.small_world.tasks.example import Maker

DOMAINS: Mapping[str, Mapping[str, Maker]] = {
    "general": general.TASKS,
    "text": text.TASKS,
    "science": science.TASKS,
    "spatial": spatial.TASKS,
    "humour": humour.TASKS,
    "reasoning": reasoning.TASKS,
}

TASKS: Mapping[str, Maker] = {
    f"{domain}/{task}": maker for domain, tasks in DOMAINS.items() for task, maker in tasks.items()
}
"""All tasks, as "general/picture"."""

KINDS: Mapping[str, Maker] = {
    f"{domain}/{kind}": maker
    for domain, kinds in (("general", general.KINDS), ("text", text.KINDS))
    for kind, maker in kinds.items()
}
"""One kind of a task alone, as "general/picture/position" or "text/picture/1"."""
