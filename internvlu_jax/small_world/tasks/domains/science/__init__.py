"""Science-centric: physics, computer science, chemistry and charts, one module for each kind of thing."""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.small_world.tasks.domains.science import (
    chart,
    graph,
    lever,
    mirror,
    molecule,
    pendulum,
    sorting,
    tree,
)
from internvlu_jax.small_world.tasks.example import Maker
from internvlu_jax.small_world.tasks.things import Topic, tasks

TOPICS: Mapping[str, Topic] = {
    "lever": lever.TOPIC,
    "pendulum": pendulum.TOPIC,
    "mirror": mirror.TOPIC,
    "tree": tree.TOPIC,
    "graph": graph.TOPIC,
    "sorting": sorting.TOPIC,
    "molecule": molecule.TOPIC,
    "chart": chart.TOPIC,
}

TASKS: Mapping[str, Maker] = tasks(TOPICS)
