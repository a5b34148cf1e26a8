"""The domains of the world, one module each: `TASKS` names what it makes (`example.Maker`).

A new domain is one more module with its own `TASKS` and one more line here. Its scenes need nothing but a `draw(side)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.data.world.domains import general, reasoning, text
from internvlu_jax.data.world.example import Maker

DOMAINS: Mapping[str, Mapping[str, Maker]] = {
    "general": general.TASKS,
    "text": text.TASKS,
    "reasoning": reasoning.TASKS,
}

TASKS: Mapping[str, Maker] = {
    f"{domain}/{task}": maker for domain, tasks in DOMAINS.items() for task, maker in tasks.items()
}
"""All tasks, as "general/picture"."""
