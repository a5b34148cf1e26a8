"""Spatial-centric: stacks of cubes at an angle and in views, and figures turned by quarters."""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.small_world.tasks.domains.spatial import blocks, turns
from internvlu_jax.small_world.tasks.example import Maker
from internvlu_jax.small_world.tasks.things import Topic, tasks

TOPICS: Mapping[str, Topic] = {"blocks": blocks.TOPIC, "turns": turns.TOPIC}

TASKS: Mapping[str, Maker] = tasks(TOPICS)
