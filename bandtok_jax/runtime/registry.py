"""Names of classes: those of the package, imported when they are needed, and those that other packages register."""

from collections.abc import Mapping
import importlib
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Classes or functions by name.

    Args:
      shipped: name -> "module:attribute" of the package. Only these modules are ever imported.
    """

    def __init__(self, shipped: Mapping[str, str]) -> None:
        self.shipped = shipped
        self.registered: dict[str, Item] = {}

    def register(self, name: str, item: Item, conflict: str) -> None:
        """Adds an item from outside the package; the same name again replaces it.

        Args:
          conflict: message for a name of the package, without the cure.

        Raises:
          ValueError: the package ships an item of that name.
        """
        if name in self.shipped:
            raise ValueError(f"{conflict}: choose another name")
        self.registered[name] = item

    def find(self, name: object, problem: str) -> Item:
        """Returns the item of a name.

        Args:
          problem: message for an unknown name, which the known names follow.

        Raises:
          ValueError: the name is unknown; the known ones are listed.
        """
        if isinstance(name, str) and name in self.registered:
            return self.registered[name]
        if not isinstance(name, str) or name not in self.shipped:
            known = ", ".join(sorted({*self.shipped, *self.registered}))
            raise ValueError(f"{problem} {known}: import the module that registers it first")
        module, _, attribute = self.shipped[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
