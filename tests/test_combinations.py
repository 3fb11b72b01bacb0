"""Choices that contradict each other are refused with the reason, before any data is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from merc.combinations import refuse_contradictions
from merc.config import compose
from merc.errors import MercError
from merc.train import train

CONF = Path(__file__).resolve().parents[1] / "conf"

Make = Callable[..., dict[str, Any]]

JOINT = ("concat", "gated", "low_rank")
WITH_HEADS = ("summed_logits", "weighted_logits", "fixed_weights")
REFUSED = [
    *(
        ((f"fusion={fusion}", f"classifier={classifier}"), "one vector of all modalities.*classifier=single_head")
        for fusion in JOINT
        for classifier in WITH_HEADS
    ),
    (("classifier=single_head", "objective=fused", "balancing=adaptive"), "AdaptiveBalancing compares the modalities"),
    (
        ("classifier=single_head", "objective=fused", "balancing=adaptive_released"),
        "AdaptiveBalancing compares the modalities",
    ),
    (("classifier=single_head", "objective=fused", "balancing=ogm_ge"), "GradientModulation compares the modalities"),
    (("classifier=single_head", "balancing=none"), r"unimodal_weight=0\.1.*choose objective=fused"),
    (("classifier=single_head", "balancing=none", "objective=fused_and_constant"), "choose objective=fused"),
    (("balancing.mechanism=null",), r"AdaptiveBalancing decides how often.*balancing\.mechanism"),
    (("denoiser=recurrent", "graph.future=0"), r"both directions.*denoiser\.default\.bidirectional=false"),
    (("denoiser.audio=recurrent", "model.causal=true"), r"denoiser\.audio\.bidirectional=false"),
    (("balancing=fixed", "balancing.mechanism=null"), r"FixedBalancing decides how often.*balancing\.mechanism"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_contradictions_are_refused(make_config: Make, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(MercError, match=message):
        refuse_contradictions(make_config(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=amb_dsgdn_released",),
        ("model=redifu_released",),
        *((f"fusion={f}", "classifier=single_head", "objective=fused", "balancing=none") for f in (*JOINT, "none")),
        ("classifier=single_head", "objective=focal", "balancing=fixed"),
        ("classifier=single_head", "objective.unimodal_weight=0", "balancing=none"),
        ("fusion=modality_attention", "classifier=fixed_weights", "balancing=ogm_ge"),
    ],
    ids=" ".join,
)
def test_what_goes_together_is_accepted(make_config: Make, overrides: tuple[str, ...]) -> None:
    refuse_contradictions(make_config(*overrides))


def test_a_run_is_refused_before_data_is_read_or_a_folder_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = ["data=custom", "data.store=nowhere", "data.modalities=[text]", "fusion=concat", f"run_dir={run}"]
    with pytest.raises(MercError, match="ConcatFusion makes one vector"):
        train(compose(overrides))
    assert not run.exists()


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_a_choice_means_the_same_in_every_method(model: str) -> None:
    """A method chooses parts and sets values that all choices read; it does not reach into what the user chooses."""
    stages = ("denoiser", "gate", "balancing", "fusion", "classifier", "scheduler")
    choices = {stage: sorted(p.stem for p in (CONF / stage).glob("*.yaml") if p.stem[0] != "_") for stage in stages}
    for i in range(max(map(len, choices.values()))):
        overrides = [f"{stage}={names[i % len(names)]}" for stage, names in choices.items()]
        ours, default = (compose([f"model={name}", *overrides]) for name in (model, "amb_dsgdn"))
        for stage, override in zip(stages, overrides, strict=True):
            assert OmegaConf.to_container(ours[stage]) == OmegaConf.to_container(default[stage]), override


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (("model=redifu_released", "data=synthetic_iemocap", "trainer.max_epochs=100"), 50),
        (("model=redifu_released", "data=synthetic_meld"), 50),
        (("model=redifu", "data=synthetic_meld"), 50),
        (("model=redifu", "data=synthetic_iemocap"), 50),
        (("model=redifu", "data=synthetic_iemocap", "trainer.max_epochs=100"), 100),
        (("model=redifu", "data=custom", "data.store=mine", "trainer.max_epochs=12"), 12),
        (("model=redifu", "data=synthetic_meld", "hyperparameters.annealing_epochs=20"), 20),
        (("model=amb_dsgdn", "data=synthetic_meld", "scheduler=cosine", "trainer.max_epochs=12"), 12),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_learning_rate_falls_over_the_published_epochs_or_those_of_the_run(
    overrides: tuple[str, ...], epochs: int
) -> None:
    assert compose(overrides).scheduler.T_max == epochs
