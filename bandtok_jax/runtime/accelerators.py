"""The machine types of accelerators.yaml: how many chips and hosts `v5e:4x4` asks for, and what others call it."""

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
    properties: dict

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        if self.properties["kind"] == "gpu" and "x" in self.topology:
            return int(self.topology.split("x")[0])
        return max(1, -(-self.chips // self.properties["chips_per_host"]))

    @property
    def chips_on_host(self) -> int:
        """Of each host that is asked for: fewer than `chips_per_host` where the others are left to somebody else."""
        return self.chips // self.hosts

    @property
    def slice_name(self) -> str:
        """What Cloud TPU and xpk call these TPUs, such as v5litepod-16."""
        return f"{self.properties['slice_name']}-{self.chips * self.properties['counted_per_chip']}"

    @property
    def machine_type(self) -> str:
        """Of the nodes of a GKE node pool."""
        return self.properties["machine_type"].format(chips=self.chips_on_host)

    def check_shape(self) -> "Accelerators":
        """Raises ValueError where no machine has this shape."""
        if self.properties["kind"] == "tpu":
            if self.topology not in self.properties["topologies"]:
                shapes = ", ".join(self.properties["topologies"])
                raise ValueError(f"{self.name} has no slice of shape {self.topology!r}: choose one of {shapes}")
        elif self.topology.count("x") > 1 or self.chips % self.hosts or self.chips_on_host > 8:
            raise ValueError(
                f"{self.name}:{self.topology} is no number of hosts and GPUs: write HOSTSxGPUS, 8 GPUs a host at most, "
                f"such as {self.name}:2x8"
            )
        return self


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
