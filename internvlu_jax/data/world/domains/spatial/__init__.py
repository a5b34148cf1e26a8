"""Spatial-centric: stacks of cubes at an angle and in views, and figures turned by quarters."""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.data.world.domains.spatial import blocks, turns
from internvlu_jax.data.world.example import Maker
from internvlu_jax.data.world.things import Topic, tasks

TOPICS: Mapping[str, Topic] = {"blocks": blocks.TOPIC, "turns": turns.TOPIC}

TASKS: Mapping[str, Maker] = tasks(TOPICS)
