"""Released checkpoints: their tensors as views into our model's.

The released models name every modality, subgraph and head; ours keep modalities and subgraphs in dictionaries, and
heads and projections that are computed together in one tensor. Each released tensor is thus a view of one of ours. The
same views serve to load weights and to compare gradients.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from merc.errors import MercError, nearest
from merc.models.amb_dsgdn.released import views as amb_dsgdn_views
from merc.models.denoisers.differential import rotary_frequencies
from merc.models.denoisers.positions import sinusoids
from merc.models.emotion_model import EmotionModel
from merc.models.redifu.released import views as redifu_views

Views = Callable[[Mapping[str, Tensor], tuple[str, ...]], Iterator[tuple[str, Tensor]]]

METHODS: dict[str, Views] = {"amb_dsgdn": amb_dsgdn_views, "redifu": redifu_views}


def method_of(state: Mapping[str, Tensor]) -> str:
    """The method that a released state dict belongs to, by its tensors."""
    return "redifu" if any(name.startswith("mutual_former.") for name in state) else "amb_dsgdn"


def released_views(model: EmotionModel, method: str, gradients: bool = False) -> dict[str, Tensor]:
    """Released name → view of our tensor of the same meaning.

    Args:
        model: a model built with ``model=<method>_released``.
        method: ``amb_dsgdn`` or ``redifu``.
        gradients: views of the gradients (zeros where there is none) in place of the weights.

    Raises:
        MercError: the model is of another kind.
    """
    tensors = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad) if gradients else p.data
        for name, p in model.named_parameters()
    }
    try:
        return dict(METHODS[method](tensors, tuple(model.projection.branches)))
    except KeyError as error:
        raise MercError(
            f"Released checkpoints of {method} fit model={method}_released only; this model has no {error}."
        ) from error


def load_released(model: EmotionModel, state: Mapping[str, Tensor]) -> None:
    """Copy a released state dict into a model of the same method, modalities and sizes.

    Args:
        model: built with ``model=amb_dsgdn_released`` or ``model=redifu_released``.
        state: the released state dict; its position tables are checked, not copied.

    Raises:
        MercError: the model is of another kind, or a tensor is missing, left over, of another shape, or not what the
            method prescribes. Nothing is copied then.
    """
    views = released_views(model, method_of(state))
    given = {name: tensor for name, tensor in state.items() if not _is_position_table(name, tensor)}
    for name in given.keys() - views.keys():
        raise MercError(f"The checkpoint's tensor '{name}' has no place in this model.{nearest(name, views)}")
    for name, view in views.items():
        if name not in given:
            raise MercError(f"The checkpoint lacks the tensor '{name}'.")
        if given[name].shape != view.shape:
            raise MercError(
                f"The checkpoint's tensor '{name}' has shape {tuple(given[name].shape)}, the model's "
                f"{tuple(view.shape)}: dimensions, classes or hidden_dim differ."
            )
    _refuse_untied(views, given)
    for name, view in views.items():
        view.copy_(given[name])


def _is_position_table(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one that the method computes; its values are checked."""
    if name.endswith(".pos_emb.pe"):
        expected = sinusoids(*tensor.shape[-2:])[None]
    elif name.endswith(".pos_emb.inv_freq"):
        expected = rotary_frequencies(2 * tensor.numel())
    else:
        return False
    if tensor.shape != expected.shape or not torch.allclose(tensor, expected, atol=1e-5):
        raise MercError(f"The checkpoint's positions '{name}' are not the sine-cosine table of the method.")
    return True


def _refuse_untied(views: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Names of the same tensor must come with the same values."""
    for name, first in tied(views).items():
        if not given[name].equal(given[first]):
            raise MercError(f"The checkpoint's tensors '{name}' and '{first}' should be one and the same, but differ.")


def tied(views: Mapping[str, Tensor]) -> dict[str, str]:
    """Released name → the earlier name of the same tensor, where there is one."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {
        name: earlier
        for name, view in views.items()
        if (earlier := first.setdefault((view.data_ptr(), view.shape), name)) != name
    }
