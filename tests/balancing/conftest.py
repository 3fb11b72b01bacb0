"""Small runs inside Lightning's Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from merc.balancing import build_policy
from merc.config import instantiate
from merc.data.datamodule import ConversationDataModule
from merc.models.lightning_module import EmotionRecognition

SMALL = ("data.size=0.01", "data.dims={text: 6, audio: 5, visual: 4}", "hyperparameters.batch_size=4")


@pytest.fixture
def fit(make_config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    """Train a small model: overrides, epochs, a checkpoint to go on from, callbacks before and behind the policy.

    Returns the module, the trainer and the policy.
    """

    def run(
        *overrides: str,
        epochs: int = 2,
        ckpt_path: Path | None = None,
        before: L.Callback | None = None,
        spy: L.Callback | None = None,
        **trainer_options: Any,
    ) -> Any:
        config = make_config(*SMALL, "hyperparameters.base_probability=0.6", *overrides)
        L.seed_everything(1, verbose=False)
        data: ConversationDataModule = instantiate(config["data"])
        data.setup()
        module = EmotionRecognition(config, data.info)
        policy = build_policy(config)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[callback for callback in (before, policy, spy) if callback is not None],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **trainer_options,
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module, trainer, policy

    return run
