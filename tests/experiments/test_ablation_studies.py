"""The studies that are run: what each changes, what it leaves alone, and how those without a plan are reported."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments.ablations import results
from experiments.ablations.__main__ import Arguments, settings_of, status
from experiments.ablations.design import CONTROL_SEEDS, DESIGNS, TUNING_SEEDS
from experiments.ablations.matching import batch_shapes
from experiments.ablations.pool import PoolConfig, collated, draw
from experiments.ablations.report import write_report
from experiments.ablations.studies import BUDGETS, STUDIES, design_of, designs
from experiments.ablations.world import DATA, sources, tokenizer
from internvlu_jax.config import Compute, ConfigError, HeadConfig
from internvlu_jax.models.head import GenerationHead
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.losses import Objective
from tests.helpers.ablations import made_outcome, made_run
from tests.helpers.unchecked import unchecked

EXPLORATORY = ("condition", "head", "reasoning", "objective")


def variants(study: str) -> dict:
    return {variant.name: variant for variant in STUDIES[study].all()}


@pytest.fixture(scope="module")
def examples():
    """Of both mixtures."""
    return {name: unchecked(draw, PoolConfig(sources("xs", name), 160)) for name in ("general", "reasoning")}


def whole(study: str, name: str, examples) -> dict:
    """What an arm reads."""
    variant, data = variants(study)[name], replace(DATA, text_lengths=STUDIES[study].sizes.contexts)
    pool = examples[variant.mixture]
    return collated(pool if variant.reasoned else pool.without_reasoning(), variant.arm.config, tokenizer(), data)


@pytest.mark.parametrize("study", EXPLORATORY)
def test_a_study_without_a_plan_changes_decoupled_and_takes_its_settings(study):
    every, own = variants(study), STUDIES[study]
    assert study not in DESIGNS and own.tuned_in == "representations" and not own.matched
    assert next(iter(every)) == "decoupled" and {variant.tuned_as for variant in every.values()} == {"decoupled"}
    design = design_of(own)
    assert design.reference == "decoupled" and design.seeds == dict.fromkeys(every, CONTROL_SEEDS)
    assert all(design.comparable("decoupled", name) for name in every), "all generate latents of one VAE"
    assert not design.families and every["decoupled"].arm == variants("representations")["decoupled"].arm


def test_what_is_trained_as_ever_is_told_as_ever():
    """Runs that began before there were these studies go on."""
    for variant in STUDIES["representations"].all():
        assert variant.told() == {} and variant.objective(4) == ObjectiveConfig(
            (("text", 1.0), ("flow", 1.0)), noises_per_image=4
        )
    assert STUDIES["representations"].sizes.contexts == DATA.text_lengths


@pytest.mark.parametrize(
    "study, name",
    [
        pytest.param("condition", "latents-only", marks=pytest.mark.slow),
        pytest.param("condition", "context-only", marks=pytest.mark.slow),
        pytest.param("head", "numbered", marks=pytest.mark.slow),
        ("reasoning", "reasoned"),
    ],
)
def test_what_is_counted_is_what_is_read(study, name, examples):
    """Shapes of the operations that are listed, against rows that were made of examples."""
    read, config = whole(study, name, examples), variants(study)[name].arm.config
    side = config.vae.downsample_factor
    for kind, batch in read.items():
        picture = batch.picture
        if picture is not None:  # latents are in their place by when a run reads them
            small = [np.zeros((1, 64 // side, 64 // side, config.vae.z_dim))] * (1 + len(picture.sources))
            batch = batch._replace(picture=picture._replace(target=small[0], sources=tuple(small[1:])))
        counted = batch_shapes(config, kind, STUDIES[study].sizes)
        assert jax.tree.map(lambda a: a.shape[1:], batch) == jax.tree.map(lambda a: a.shape[1:], counted), kind
    assert len(read["edits"].picture.sources) == (name != "context-only")


def test_nothing_but_what_the_head_is_told():
    configs = {name: variant.arm.config for name, variant in variants("condition").items()}
    heads = {name: config.generation_decoder for name, config in configs.items()}
    sources = {name: head.sources for name, head in heads.items()}
    assert sources == {"decoupled": "both", "context-only": "context", "latents-only": "latents"}
    alike = {
        replace(config, generation_decoder=replace(heads[name], sources="both")) for name, config in configs.items()
    }
    assert alike == {configs["decoupled"]}


def head_parameters(config: HeadConfig) -> int:
    made = jax.eval_shape(lambda key: GenerationHead(config).init(key, method="build"), jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(made))


def test_parameters_of_parts_of_the_head():
    """By hand, of 4 blocks of two streams, 96 wide, whose context is 2 x 96 wide."""
    every = variants("head")
    whole = every["decoupled"].arm.config
    assert {replace(v.arm.config, generation_decoder=whole.generation_decoder) for v in every.values()} == {whole}
    counts = {name: head_parameters(variant.arm.config.generation_decoder) for name, variant in every.items()}
    assert {name: counts["decoupled"] - count for name, count in counts.items()} == {
        "decoupled": 0,
        "no-gate": 4 * 2 * (96 * 96 + 96),
        "numbered": 0,
        "no-context-norm": 2 * 96,
        "one-layer": 96 * 96 + 96 + 96,  # of its embedding, norm and padding token
    }


def test_riddles_are_the_same_with_and_without_their_words(examples):
    words, silent = (whole("reasoning", name, examples) for name in ("reasoned", "riddles"))
    assert list(words) == list(silent)
    for batch, other in zip(words.values(), silent.values(), strict=True):
        assert jax.tree.map(np.shape, batch) == jax.tree.map(np.shape, other)
    pictures, others = words["pictures"], silent["pictures"]
    np.testing.assert_array_equal(pictures.picture.target, others.picture.target)
    riddles = pictures.text.weights.any(axis=1)
    assert 0.2 < riddles.mean() < 0.5 and not others.text.weights.any()
    np.testing.assert_array_equal(pictures.text.ids[~riddles], others.text.ids[~riddles])
    assert (pictures.picture.context_lengths[riddles] > others.picture.context_lengths[riddles]).all()
    plain = whole("reasoning", "decoupled", examples)
    assert jax.tree.map(lambda a: a.shape[1:], plain["pictures"]) == jax.tree.map(lambda a: a.shape[1:], others)


# Values below which a quarter, a half and three quarters of the noise levels are: of s u / (1 + (s - 1) u), where u is
# uniform or sigmoid(n), whose quartiles are sigmoid(-0.6745), 1/2 and sigmoid(0.6745) for a normal n
LOGIT_NORMAL = np.array([0.33748, 0.5, 0.66252])
LEVELS = {"decoupled": (LOGIT_NORMAL, 1.0), "uniform": (np.array([0.25, 0.5, 0.75]), 1.0),
          "shift-0.5": (LOGIT_NORMAL, 0.5), "shift-3": (LOGIT_NORMAL, 3.0),
          "flow-1": (LOGIT_NORMAL, 1.0), "flow-20": (LOGIT_NORMAL, 1.0)}  # fmt: skip


def test_noise_levels_are_trained_differently_and_scored_alike():
    every = variants("objective")
    assert set(every) == set(LEVELS)
    scored = set()
    for name, (u, shift) in LEVELS.items():
        model = InternVLU(every[name].arm.config, tuple(range(NUM_SPECIAL_TOKENS)), Compute())
        trained = Objective(model, every[name].objective(4)).times
        got = [trained.quantile(share) for share in (0.25, 0.5, 0.75)]
        np.testing.assert_allclose(got, shift * u / (1 + (shift - 1) * u), atol=1e-4)
        scored.add(Objective(model, ObjectiveConfig()).times)  # as `FlowLoss` has it
    assert len(scored) == 1
    assert every["shift-3"].told() == {"noise_shift": 3.0} and every["uniform"].told() == {"time": "uniform"}
    assert variants("reasoning")["riddles"].told() == {"mixture": "reasoning", "reasoned": False}


# The command


def asked(workdir: Path, *words: str) -> Arguments:
    return tyro.cli(Arguments, args=[*words, "--workdir", str(workdir)])


def test_every_study_can_be_asked_for(tmp_path, capsys):
    for name, study in STUDIES.items():
        assert asked(tmp_path, name).of.name == study.name
    with pytest.raises(SystemExit):
        asked(tmp_path, "decoupling")
    assert "objective" in capsys.readouterr().err
    arguments = asked(tmp_path, "objective", "--budget", "laptop")
    assert [arguments.planned(name) for name in variants("objective")] == [(0, 1, 2, 3)] * 6
    said = status(arguments, arguments.of.chosen(("uniform",)))
    assert " ".join(said.splitlines()[0].split()) == "uniform 0 of 4 runs ended, 0 of tuning"
    with pytest.raises(ConfigError, match="study objective has no arm 'gate'; expected some of decoupled, uniform"):
        arguments.of.chosen(("gate",))


@pytest.fixture
def tuned(tmp_path) -> Path:
    """Results of a tuning of decoupled at budget smoke."""
    tried, path = BUDGETS["smoke"].tuning, tmp_path / "results.jsonl"
    ways = [(guidance, shift) for guidance in tried.guidance for shift in tried.shifts]
    for n, (guidance, shift) in enumerate(ways):
        settings = {"learning_rate": 1e-3, "flow_weight": 7.0, "guidance": guidance, "shift": shift}
        run = made_run("decoupled", TUNING_SEEDS[0], budget="smoke", settings=settings, tuning=True)
        results.begin(path, run)
        results.finish(path, run, made_outcome({"geneval_seen": 0.25 if n else 0.0}))
    return tmp_path


def test_settings_are_those_of_the_other_study_but_for_what_is_compared(tuned):
    weights = {
        (study, name): settings_of(asked(tuned, study), variant).flow_weight
        for study in ("head", "objective")
        for name, variant in variants(study).items()
    }
    assert {weights["head", name] for name in variants("head")} == {7.0}
    assert {name: weights["objective", name] for name in variants("objective")} == {
        "decoupled": 5.0, "uniform": 5.0, "shift-0.5": 5.0, "shift-3": 5.0, "flow-1": 1.0, "flow-20": 20.0,
    }  # fmt: skip


def test_a_study_without_a_plan_is_described(tmp_path):
    """Against decoupled, whichever arm was run first, and with its flow loss; no tests."""
    path = tmp_path / "results.jsonl"
    losses = {"shift-3": 0.5, "decoupled": 0.4}
    for seed in range(2):
        for arm, loss in losses.items():
            run = made_run(arm, seed, study="objective")
            results.begin(path, run)
            parity = {"parameters": 100.0 if arm == "decoupled" else 80.0}
            results.finish(path, run, made_outcome({"flow_loss": loss + seed / 100}, parity=parity))
    text = write_report(path, tmp_path, designs()).read_text()
    section = text.partition("## objective, budget laptop")[2].partition("\n## ")[0]
    assert "None were fixed for this study." in section and "### Differences to decoupled" in section
    assert "arm uniform: no run" in section and "arm shift-3: seeds 2, 3 have not ended" in section
    assert "the settings are those of representations" in section and "tuning: no run" not in section
    assert "| shift-3 | parameters | 80 | -20.00% | – |" in section, "listed, and held to nothing"
    assert (tmp_path / "objective-laptop-forest.png").is_file()
    assert "- head; planned are" in text
