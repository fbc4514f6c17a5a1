"""The machine types of accelerators.yaml, and how many chips and hosts a name such as `v5e:4x4` asks for."""

import dataclasses
import difflib
import importlib.resources
import math

import yaml


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """So many chips of one type.

    name: of the type; topology: "4x4" or "4x4x4" of TPUs, "2x8" (hosts x GPUs) or "8" of GPUs; facts: what
    accelerators.yaml says of the type.
    """

    name: str
    topology: str
    facts: dict

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        return max(1, -(-self.chips // self.facts["chips_per_host"]))


def read() -> dict[str, dict]:
    """`{type: facts}`, as accelerators.yaml says."""
    text = importlib.resources.files(__package__).joinpath("accelerators.yaml").read_text()
    return yaml.safe_load(text)


def parse(text: str) -> Accelerators:
    """`v5e:4x4` -> what that is.

    Raises:
      ValueError: no such type, or no such shape.
    """
    name, _, topology = text.partition(":")
    types = read()
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        raise ValueError(
            f"there is no machine type {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; "
            f"there are {', '.join(types)}"
        )
    if not all(part.isdigit() and int(part) for part in topology.split("x")):
        example = "4x4" if types[name]["kind"] == "tpu" else "2x8 (hosts x GPUs)"
        raise ValueError(f"{text!r} says not how many chips: write {name}:SHAPE, such as {name}:{example}")
    return Accelerators(name, topology, types[name])
