"""A model of the small world that knows the cases."""

import numpy as np

from internvlu_jax.small_world import SMALL, XS_TRANSFER, World
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.small_world.scoring.suite import Query, Reply

BLANK = np.full((64, 64, 3), 255, np.uint8)
COUNT = 24


def world_of(name: str) -> World:
    return XS_TRANSFER if name.startswith("transfer") else SMALL


class Knowing:
    """A model that knows the cases: right in some modes, and in the others wrong."""

    def __init__(self, name: str, right: tuple[str, ...] = ("text", "image", "text_image"), count: int = COUNT) -> None:
        self.cases, self.right, self.queries = cases(world_of(name), name, count), right, []

    def __call__(self, queries):
        self.queries += queries
        return [self.reply(query) for query in queries]

    def reply(self, query: Query) -> Reply:
        case = self.cases[query.number]
        assert query.prompt == case.prompt
        assert (query.source is None) == (case.source is None)
        if query.source is not None:
            assert np.array_equal(query.source, case.source.draw(64))
        if query.mode not in self.right:
            unchanged = BLANK if query.source is None else query.source
            return Reply(None if query.mode == "text" else unchanged, "nothing")
        text = {"text": case.answer, "text_image": f" {case.reasoning} "}.get(query.mode, "")
        return Reply(None if query.mode == "text" else case.image.draw(64), text)
