"""The training contract of several seeds at once.

Each seed has a module of its own, whose parameters are views of stacked ones: what the optimiser does to the stack has
been done to the seed, and what looks at a single run (checkpoints, balancing, predictions) looks at its module. Only
forward and backward passes go through the stack, by :func:`torch.func.vmap`.

S is the number of seeds.
"""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from merc.balancing import ModalityDropout
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.data.stacked import Frame, FramedBatch, StackedBatches, stack_batches, stack_rows
from merc.models.lightning_module import EmotionRecognition, MeanLosses, build_optimizers
from merc.stacking.refusals import MODES
from merc.stacking.replay import CUDA_GRAPHS, Replayed
from merc.stacking.state import joined_state, own_state

ROW_SIZES = 8
"""Numbers of rows that batches to be replayed have: they are filled up to the next."""

State = tuple[bool, bool]
"""Whether a stack is trained, and whether it is balanced then: what is computed hangs on that."""

StackedRows = dict[str, Tensor]
"""Modality → (S, N, D)."""


class Member(EmotionRecognition):
    """One seed of a stack. It keeps what it logs, for its recorder.

    Attributes:
        logged: name → the last value of it.
    """

    def __init__(self, config: Mapping[str, Any], info: CorpusInfo) -> None:
        super().__init__(config, info)
        self.logged: dict[str, float] = {}

    def log_dict(self, dictionary: Any, *_: Any, **__: Any) -> None:
        """Keep the values."""
        self.logged |= {name: float(value) for name, value in dictionary.items()}


class StackedRecognition(L.LightningModule):
    """Trains and evaluates S modules that differ in nothing but the seed.

    Args:
        members: a module for each seed, on the device.
        compile: torch.compile's mode for the forward and backward passes of training, or :data:`CUDA_GRAPHS`; None:
            they are not compiled.
        frame: what holds every batch of training, which are filled up to it or, to be replayed, to the next of some
            sizes below; None: they are filled up to what the batches of a step need.
        evaluation_frame: likewise of evaluation.

    Attributes:
        stacked: the parameters of all seeds, (S, ...), in the order of a module's own.
        weights: what of a module differs between the seeds, by name, (S, ...).
        callbacks: of each seed, whose states go into its checkpoints; set before fitting.
        current: the seed whose checkpoint is being written.
        resumed: the checkpoint of each seed, where training goes on from them; set before fitting.
    """

    def __init__(
        self,
        members: Sequence[Member],
        compile: str | None = None,
        frame: Frame | None = None,
        evaluation_frame: Frame | None = None,
    ) -> None:
        super().__init__()
        self.mode = compile
        self.frames = {True: frame, False: evaluation_frame}
        self.members = nn.ModuleList(members)
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.stack([p.detach() for p in parameters]), parameters[0].requires_grad)
            for parameters in zip(*(member.parameters() for member in members), strict=True)
        )
        for i, member in enumerate(members):
            for parameter, stacked in zip(member.parameters(), self.stacked, strict=True):
                parameter.data = stacked.data[i]
        self.weights = _named(members, list(self.stacked))
        self._maps = {function: _Mapped(members[0], function, compile) for function in (_encode, _judge, _all_stages)}
        if compile in MODES:
            for weight in self.weights.values():
                torch._dynamo.mark_static_address(weight)
        self.callbacks: Sequence[Sequence[L.Callback]] = ()
        self.current = 0
        self.resumed: Sequence[Mapping[str, Any]] = ()
        self.mean_losses = MeanLosses()

    @property
    def seeds(self) -> Sequence[Member]:
        """The modules of the seeds."""
        return cast(Sequence[Member], self.members)

    def training_step(self, batches: Sequence[ConversationBatch], batch_idx: int) -> Tensor:
        """The sum of the seeds' losses, of which every seed's parameters get their own gradient alone."""
        self._wake_first()
        stack = self._stack(batches)
        losses = self._losses_of(stack, batches)
        self.mean_losses.add(losses, stack.real.sum(1))
        return losses["total"].sum()

    def _stack(self, batches: Sequence[ConversationBatch]) -> StackedBatches:
        frame = self.frames[self.training]
        sizes = ROW_SIZES if self.mode == CUDA_GRAPHS else 1
        return stack_batches(batches, None if frame is None else frame.fitting(batches, sizes))

    def _wake_first(self) -> None:
        """Let the first seed, whose module all run through, be balanced if any is: it may have diverged before."""
        mechanisms = [member.model.balancing for member in self.seeds]
        if any(getattr(mechanism, "active", False) for mechanism in mechanisms):
            cast(ModalityDropout, mechanisms[0]).active = True

    def _losses_of(self, stack: StackedBatches, batches: Sequence[ConversationBatch]) -> dict[str, Tensor]:
        """Name → (S,)."""
        balancing = self.seeds[0].model.balancing
        if balancing is None or not getattr(balancing, "acts_alone", True):
            return self._map(_all_stages, stack.fields)[1]
        rows, kept_SN = self._balanced(self._map(_encode, stack.fields), stack, batches)
        return self._map(_judge, rows, kept_SN, stack.fields)[1]

    def _map(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(module, *inputs)`` of every seed: tensors (S, ...), in nested mappings, to such tensors."""
        balanced = self.training and getattr(self.seeds[0].model.balancing, "active", False)
        return self._maps[function]((self.training, balanced), self.weights, *inputs)

    def free_graphs(self) -> None:
        """Let go of what is compiled or recorded, which holds the stack and counts against a limit of PyTorch's."""
        for mapped in self._maps.values():
            mapped.graphs.clear()
        if self.mode in MODES:
            torch.compiler.reset()
        elif self.mode == CUDA_GRAPHS:
            gc.collect()  # a recording is part of a cycle, and with it gigabytes of the device

    def _balanced(
        self, rows: StackedRows, stack: StackedBatches, batches: Sequence[ConversationBatch]
    ) -> tuple[StackedRows, Tensor]:
        """The balancing stage of each seed by itself, with its own scores: the rows, and which of them count."""
        done = [
            _balance(member, {m: x_SND[i, : batch.rows] for m, x_SND in rows.items()}, batch)
            for i, (member, batch) in enumerate(zip(self.seeds, batches, strict=True))
        ]
        if all(kept_N is None for _, kept_N in done):
            return rows, stack.real
        # A seed that diverged in warm-up never leaves it, but for the first.
        kept = [
            stack.real[i, : batch.rows] if kept_N is None else kept_N
            for i, (batch, (_, kept_N)) in enumerate(zip(batches, done, strict=True))
        ]
        count = stack.real.shape[1]
        return {m: stack_rows([own[m] for own, _ in done], count) for m in rows}, stack_rows(kept, count)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`EmotionRecognition.optimizer_step`."""
        super().optimizer_step(*args, **kwargs)
        self.stacked.zero_grad()

    def on_train_epoch_end(self) -> None:
        """Hand every seed its mean losses; logged here is what progress shows, as in evaluation."""
        means = self.mean_losses.take()
        for name, mean_S in means.items():
            for member, mean in zip(self.seeds, mean_S.tolist(), strict=True):
                member.log_dict({name: mean})
        self.log("train/loss", _finite_mean(means["train/loss"]))

    def validation_step(self, batches: Sequence[ConversationBatch], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of an evaluated split of every seed."""
        stack = self._stack(batches)
        fused_SNC, losses = self._map(_all_stages, stack.fields)
        predicted_SN = fused_SNC.argmax(-1)
        for i, (member, batch) in enumerate(zip(self.seeds, batches, strict=True)):
            member.count(dataloader_idx, losses["total"][i], predicted_SN[i, : batch.rows], batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Scores of every seed; logged here is what progress shows, the mean over those that have not diverged."""
        for member in self.seeds:
            member.on_validation_epoch_end()
        for split in self.seeds[0].evaluation_splits:
            scores = [member.scores[split] for member in self.seeds]
            sound = [own for own in scores if math.isfinite(own["loss"])] or scores
            self.log(f"{split}/weighted_f1", fmean(own["weighted_f1"] for own in sound))

    def configure_optimizers(self) -> Any:
        """The optimiser over the stack and, if any, the scheduler."""
        return build_optimizers(self.seeds[0].config, self.stacked)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn the checkpoint of the stack into what the current seed would have written alone."""
        member = self.seeds[self.current]
        checkpoint["state_dict"] = member.state_dict()
        member.on_save_checkpoint(checkpoint)
        if "optimizer_states" in checkpoint:
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [own_state(state, self.current) for state in states]
            named = ((callback.state_key, callback.state_dict()) for callback in self.callbacks[self.current])
            checkpoint["callbacks"] = {key: state for key, state in named if state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the checkpoints of all seeds; Lightning read that of the first."""
        for member, callbacks, own in zip(self.seeds, self.callbacks, self.resumed, strict=True):
            member.load_state_dict(own["state_dict"])
            for callback in callbacks:
                if callback.state_key in own["callbacks"]:
                    callback.load_state_dict(own["callbacks"][callback.state_key])
        checkpoint["state_dict"] = self.state_dict()
        checkpoint["callbacks"] = {}
        states = zip(*(own["optimizer_states"] for own in self.resumed), strict=True)
        checkpoint["optimizer_states"] = [joined_state(state) for state in states]
        self.resumed = ()


class _Mapped:
    """A function of a module, of all seeds at once.

    Args:
        module: that of one seed.
        function: called with the module and inputs.
        compile: see :class:`StackedRecognition`.

    Attributes:
        graphs: state of the module → the function as a graph.
    """

    def __init__(self, module: Member, function: Callable[..., Any], compile: str | None) -> None:
        self.called = _Called(module, function)
        self.mode = compile
        self.graphs: dict[State, Callable[..., Any]] = {}

    def __call__(self, state: State, weights: dict[str, Tensor], *inputs: Any) -> Any:
        """Call it with stacked weights by name, always in the same place, and inputs (S, ...)."""
        if state not in self.graphs:
            training, _ = state
            self.graphs.pop((training, False), None)  # behind the warm-up nobody asks for it any more
            self.graphs[state] = self._graph(training)
        return self.graphs[state](weights, *inputs)

    def _graph(self, training: bool) -> Callable[..., Any]:
        if self.mode == CUDA_GRAPHS:
            return Replayed(self._at_once)
        if self.mode is None or not training:
            return self._at_once
        return torch.compile(self._at_once, fullgraph=True, dynamic=False, mode=self.mode)

    def _at_once(self, weights: dict[str, Tensor], *inputs: Any) -> Any:
        # The fused kernels of attention have no batching rule, products and softmax have.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(self._of_one, randomness="different")(weights, *inputs)

    def _of_one(self, weights: dict[str, Tensor], *inputs: Any) -> Any:
        return functional_call(self.called, weights, inputs)


class _Called(nn.Module):
    """A function of a module as a module, which :func:`functional_call` asks for."""

    def __init__(self, module: Member, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """What the function returns."""
        return self.function(self.module, *inputs)


def _named(members: Sequence[Member], stacked: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name in :class:`_Called` → what the seeds have there, (S, ...).

    These are parameters, buffers in which they differ, and those of balancing, which steps change: the seeds' own
    become views of them.
    """
    named = dict(zip((name for name, _ in members[0].named_parameters()), stacked, strict=True))
    for entries in zip(*(member.named_buffers() for member in members), strict=True):
        name, values = entries[0][0], [buffer for _, buffer in entries]
        changing = name.startswith("model.balancing.")
        if changing or any(not torch.equal(value, values[0]) for value in values):
            named[name] = torch.stack(values)
        if changing:
            for value, own in zip(values, named[name], strict=True):
                value.data = own
    return {f"module.{name}": value for name, value in named.items()}


def _finite_mean(values_S: Tensor) -> Tensor:
    """The mean without those that are infinite or no number."""
    finite_S = values_S.isfinite()
    return values_S.where(finite_S, 0.0).sum() / finite_S.sum()


def _encode(member: Member, fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """The stages before balancing."""
    return member.model.encode(_framed(member, fields))


def _judge(
    member: Member, rows: Mapping[str, Tensor], kept_N: Tensor, fields: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The stages behind balancing: (N, C) logits, and the losses over the rows that count."""
    return _judge_batch(member, rows, kept_N, _framed(member, fields))


def _all_stages(member: Member, fields: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """(N, C) logits, and the losses over the rows that count."""
    batch = _framed(member, fields)
    rows, kept_N = member.model.encode(batch), None
    if member.training and member.model.balancing is not None:
        rows, kept_N = member.model.balancing(rows, batch)
    return _judge_batch(member, rows, batch.real if kept_N is None else batch.real & kept_N, batch)


def _judge_batch(
    member: Member, rows: Mapping[str, Tensor], kept_N: Tensor, batch: FramedBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    prediction = member.model.classify(rows, batch)
    return prediction.fused, member.objective(replace(prediction, kept=kept_N), batch.labels)


def _framed(member: Member, fields: Mapping[str, Any]) -> FramedBatch:
    return FramedBatch(**fields, lengths=(), causal=member.model.causal)


def _balance(
    member: Member, rows: dict[str, Tensor], batch: ConversationBatch
) -> tuple[dict[str, Tensor], Tensor | None]:
    assert member.model.balancing is not None
    done: tuple[dict[str, Tensor], Tensor | None] = member.model.balancing(
        rows, replace(batch, causal=member.model.causal)
    )
    return done
