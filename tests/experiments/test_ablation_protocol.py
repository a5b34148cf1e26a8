"""The protocol in words says what the plan, the endpoints, tuning and budgets say as data."""

import re
from dataclasses import replace
from pathlib import Path

from experiments.ablations.design import (
    ALPHA,
    CASE_SEEDS,
    CONTROL_SEEDS,
    DESIGNS,
    PILOT_SEEDS,
    REPRESENTATIONS,
    SEEDS,
    TUNING,
    TUNING_SEEDS,
)
from experiments.ablations.endpoints import ENDPOINTS
from experiments.ablations.parts import KEPT
from experiments.ablations.studies import BUDGETS, STUDIES
from internvlu_jax.utils.files import read_json

ROOT = Path(__file__).parent.parent.parent
PROTOCOL = (ROOT / "experiments/ablations/protocol.md").read_text(encoding="utf-8")


def rows_of(title):
    """Rows of the first table of a section, without its head."""
    section = PROTOCOL.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_protocol_and_plan_say_the_same():
    listed = {arm: int(count) for arm, *_, count in rows_of("Arms")}
    singles = {arm for pair in REPRESENTATIONS.singles.values() for arm in pair}
    planned = {arm: len(seeds) for arm, seeds in REPRESENTATIONS.seeds.items() if arm not in singles}
    (controls,) = set(listed) - set(planned)
    assert {arm: count for arm, count in listed.items() if arm != controls} == planned
    assert {len(REPRESENTATIONS.seeds[arm]) for arm in singles} == {listed[controls]}
    assert f"Seeds are {SEEDS[0]} to {SEEDS[-1]}, and {CONTROL_SEEDS[0]} to {CONTROL_SEEDS[-1]} for" in PROTOCOL
    assert f"Seed {TUNING_SEEDS[0]} is for tuning and {PILOT_SEEDS[0]} for pilots" in PROTOCOL
    assert f"(case seed {CASE_SEEDS['validation']}; what is counted uses case seed {CASE_SEEDS['test']})" in PROTOCOL
    assert f"adjusted p values up to {ALPHA:g}" in PROTOCOL
    counted = {name for name, *_, said in rows_of("Budgets") if said == "yes"}
    assert counted == set(REPRESENTATIONS.counted_budgets)


def test_protocol_and_endpoints_say_the_same():
    for name, _, better, margin in rows_of("Endpoints"):
        endpoint = ENDPOINTS[name.strip("`")]
        size = float(margin.removesuffix(" points")) / (100 if margin.endswith("points") else 1)
        assert (better, size) == (endpoint.better, endpoint.margin)
        assert margin.endswith("points") == (endpoint.unit == "share")
    listed = set()
    for name, tests in rows_of("Tests"):
        for test in tests.replace("`", "").split("; "):
            endpoint, _, arms = test.partition(": ")
            listed |= {(name, endpoint, arm) for arm in arms.split(", ")}
    planned = {(f.name, c.endpoint, c.arm) for f in REPRESENTATIONS.families for c in f.comparisons}
    assert listed == planned
    leads = "least {questions:g} in `questions`\nand {geneval_heldout:g} in `geneval_heldout`"
    assert leads.format(**REPRESENTATIONS.families[0].leads_from) in PROTOCOL
    assert all(f"`{name}`" in PROTOCOL for name in ENDPOINTS)


def test_protocol_and_tuning_say_the_same():
    tuning = " ".join(PROTOCOL.partition("## Tuning")[2].partition("\n## ")[0].split())
    rates = TUNING.learning_rates
    assert f"{', '.join(f'{rate:g}' for rate in rates[:-1])} and {rates[-1]:g}, with text : flow 1 :" in tuning
    assert all(f"1 : {weight:g}" in tuning for weight in TUNING.flow_weights)
    assert "guidance {:g}, {:g} and {:g}".format(*TUNING.guidance) in tuning
    assert "times {:g}, {:g} and {:g}".format(*TUNING.shifts) in tuning
    assert f"validation cases (case seed {CASE_SEEDS['validation']};" in tuning


def test_protocol_and_budgets_say_the_same():
    for name, steps, rows, tuning, cases, *_ in rows_of("Budgets"):
        budget = BUDGETS[name]
        assert int(steps.replace(",", "")) == budget.steps and int(tuning) == budget.tuning_steps
        assert int(cases) == budget.cases
        if name != "smoke":
            assert rows == ", ".join(str(count) for _, count in budget.rows) and budget.tuning_steps * 4 == budget.steps
            assert budget.tuning_cases == budget.cases and f"has {budget.noises} noises" in PROTOCOL


def test_protocol_and_the_longer_study_say_the_same():
    section = " ".join(PROTOCOL.partition("## Once more, for longer")[2].partition("\n## ")[0].split())
    long, study = DESIGNS["representations-long"], STUDIES["representations-long"]
    (budget,) = long.counted_budgets
    steps, tuning = BUDGETS[budget].steps, BUDGETS[budget].tuning_steps
    assert f"{steps:,} steps a run, and tuning for {tuning:,} (budget `{budget}`)" in section
    other = {"families": (), "counted_budgets": (), "found": ()}
    assert replace(long, **other) == replace(REPRESENTATIONS, **other)
    instead = {"geneval_heldout": "geneval_seen", "flow_loss": "flow_loss_seen"}
    for old, new in zip(REPRESENTATIONS.families, long.families, strict=True):
        assert [instead.get(c.endpoint, c.endpoint) for c in old.comparisons] == [c.endpoint for c in new.comparisons]
        assert {instead.get(name, name): least for name, least in old.leads_from.items()} == new.leads_from
    assert all(f"`{name}`" in section for name in (*instead, *instead.values()))
    assert study.flow == "flow_loss_seen" and STUDIES["representations"].flow == "flow_loss"
    for variant, usual in zip(study.all(), STUDIES["representations"].all(), strict=True):
        drawn = ("flow_loss_seen",) if "pictures" in variant.kinds else ()
        assert replace(variant, scores=usual.scores) == usual and variant.scores == (*usual.scores, *drawn)


def test_what_was_found_is_what_the_kept_parts_have():
    """Of the true pictures of what is held out."""
    said = REPRESENTATIONS.found[0]
    for endpoint, words in (
        ("geneval_heldout", "{vae0:.1%} would be read right after the VAE and {semantic:.1%} after the decoder"),
        ("transfer_pictures", "of `transfer_pictures` {vae0:.1%} and {semantic:.1%}"),
    ):
        best = {name: read_json(KEPT / name / "ceiling.json")["drawn"][endpoint] for name in ("vae0", "semantic")}
        assert words.format(**best) in said and f"`{endpoint}`" in said


def test_protocol_and_the_discrete_study_say_the_same():
    section = " ".join(PROTOCOL.partition("## Discrete")[2].partition("\n## ")[0].split())
    design, (decoupled, discrete) = DESIGNS["discrete"], STUDIES["discrete"].all()
    assert design.seeds == dict.fromkeys((decoupled.name, discrete.name), CONTROL_SEEDS) and not design.families
    (budget,) = design.counted_budgets
    assert f"seeds {CONTROL_SEEDS[0]} to {CONTROL_SEEDS[-1]}, at budget `{budget}`" in section
    assert design.matched and design.tuned_in is None and STUDIES["discrete"].drawing_loss(discrete) == "code_loss"
    assert STUDIES["discrete"].drawing_loss(decoupled) == "flow_loss_seen"
    codec, head = discrete.arm.config.vae, discrete.arm.config.generation_decoder
    assert set(codec.levels) == {5} and f"{codec.z_dim} channels of a latent has 5 levels" in section
    said = "{} channels make a code: {} entries, {} codes a latent, {} a token, {} tokens a picture"
    tokens = discrete.arm.config.vlm.tokens_per_tile
    assert said.format(len(codec.levels), codec.entries, codec.codes, head.codes, tokens) in section
    for name, start in (("vae-quantized", "Its ceiling, "), ("vae0", "decoupled's VAE (")):
        ceiling = read_json(KEPT / name / "ceiling.json")
        psnr, right = (ceiling[key]["value"] for key in ("psnr", "right"))
        assert re.search(rf"{re.escape(start)}{psnr:.1f} dB,? (and )?{right:.1%}", section), name
    assert "temperatures {:g}, {:g} and {:g}".format(*TUNING.temperatures) in section
    assert set(decoupled.scores) ^ set(discrete.scores) == {"flow_loss", "flow_loss_seen", "code_loss"}
