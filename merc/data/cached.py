"""Properties that are worked out once, in code that :func:`torch.compile` reads."""

import functools
from typing import Any, TypeVar

T = TypeVar("T")


class cached_property(functools.cached_property[T]):  # noqa: N801
    """``functools.cached_property`` without the lock that Python 3.11 has there, which cannot be compiled."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """The value, which stays in the instance's ``__dict__``."""
        if instance is None:
            return self
        values = instance.__dict__
        if self.attrname not in values:
            values[self.attrname] = self.func(instance)
        return values[self.attrname]
