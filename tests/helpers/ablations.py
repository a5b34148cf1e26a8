"""Made-up results of studies."""

from experiments.ablations.analysis import Sample
from experiments.ablations.design import REPRESENTATIONS
from experiments.ablations.results import Outcome, Record, Run

MACHINE = {"device": "made up", "cpu": "made up", "cores": 2}


def made_run(arm, seed, **changed):
    return Run(**{"study": "representations", "arm": arm, "seed": seed, "budget": "laptop", "settings": {}, **changed})


def made_outcome(endpoints, **changed):
    return Outcome(**{"seconds": 60.0, "steps": 10, "parity": {}, "endpoints": endpoints, **changed})


def finished(arm, seed, endpoints, **changed):
    return Record(made_run(arm, seed), "finished", 1, MACHINE, "0" * 40, made_outcome(endpoints, **changed))


def failed(arm, seed):
    return Record(made_run(arm, seed), "failed", 1, MACHINE, "0" * 40, None, "the loss is not finite")


def made_sample(values, failures=()):
    """A sample of {arm: {endpoint: values by seed from 0}}, and failed (arm, seed)."""
    records = [
        finished(arm, seed, {name: float(series[seed]) for name, series in endpoints.items()})
        for arm, endpoints in values.items()
        for seed in range(len(next(iter(endpoints.values()))))
        if (arm, seed) not in failures
    ]
    records += [failed(arm, seed) for arm, seed in failures]
    return Sample("representations", "laptop", REPRESENTATIONS, tuple(records))
