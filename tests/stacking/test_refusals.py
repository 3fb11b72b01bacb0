"""What several seeds at once cannot be is refused with the reason."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from merc.data.conversation import CorpusInfo
from merc.errors import MercError
from merc.stacking.refusals import refuse_different_data, refuse_stacking

Configure = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("balancing=ogm_ge", "GradientModulation works on single runs only"),
        ("denoiser.text=recurrent", "RecurrentDenoiser works on single runs only"),
        ("model=redifu_released", "predictions depend on padding"),
        ("plugins=[json]", "parts of your own"),
        ("optimizer._target_=torch.optim.Adafactor", "Adafactor may not treat every number by itself"),
        ("trainer=ddp", "has one device"),
        ("trainer.gradient_clip_val=1", "norm over all seeds"),
        ("trainer.precision=16-mixed", "lost to all"),
        ("debug=profiler", "profiles the stages of one model"),
        ("logger=wandb", "a logger does not follow a stack"),
    ],
)
def test_the_reason_is_given(make_config: Configure, choice: str, reason: str) -> None:
    config = make_config(choice)
    with pytest.raises(MercError, match=reason) as refusal:
        refuse_stacking([config, config])
    assert str(refusal.value).endswith("Train the seeds one by one: seeds_per_process=1.")


@pytest.mark.parametrize(
    "choices",
    [
        "model=amb_dsgdn",
        "model=amb_dsgdn_released",
        "model=redifu",
        "balancing=fixed optimizer=adamw",
        "+trainer.gradient_clip_algorithm=value trainer.gradient_clip_val=1 trainer.precision=bf16-mixed",
    ],
)
def test_the_rest_is_not_refused(make_config: Configure, choices: str) -> None:
    configs = [make_config(*choices.split(), f"seed={seed}") for seed in (1, 2)]
    refuse_stacking(configs)


def test_where_a_run_is_written_may_follow_the_seed(make_config: Configure) -> None:
    refuse_stacking([make_config("run_dir=elsewhere/${seed}", f"seed={seed}") for seed in (1, 2)])


def test_what_follows_the_seed_beside_the_data_is_refused(make_config: Configure) -> None:
    configs = [make_config("trainer.max_epochs=${seed}", f"seed={seed}") for seed in (1, 2)]
    with pytest.raises(MercError, match="trainer depends on the seed"):
        refuse_stacking(configs)


@pytest.mark.parametrize(
    ("slots", "loaders"), [((3, 4), ([[0, 0]], [[0, 0]])), ((3, 3), ([[0, 0], [0]], [[0, 0], [0, 0]]))]
)
def test_data_of_different_shapes_or_batches_are_refused(
    slots: Sequence[int], loaders: Sequence[Sequence[Sequence[int]]]
) -> None:
    infos = [CorpusInfo({"text": 3}, ("calm",), slot, (index,)) for index, slot in enumerate(slots)]
    refuse_different_data(infos[:1] * 2, loaders[:1] * 2)
    with pytest.raises(MercError, match="differ in shape or in batches"):
        refuse_different_data(infos, loaders)
