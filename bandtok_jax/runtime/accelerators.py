"""The machine types of accelerators.yaml, and the chips, hosts and foreign names of one such as `v5e:4x4`."""

import dataclasses
import difflib
import importlib.resources
import math

import yaml


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """A number of chips of one type.

    Attributes:
      name: machine type.
      topology: "4x4" or "4x4x4" for TPUs, "2x8" (hosts x GPUs) or "8" for GPUs.
      properties: entry of the type in accelerators.yaml.
    """

    name: str
    topology: str
    properties: dict

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        if self.properties["kind"] == "gpu" and "x" in self.topology:
            return int(self.topology.split("x")[0])
        return max(1, -(-self.chips // self.properties["chips_per_host"]))

    @property
    def chips_on_host(self) -> int:
        """Chips used of each host, at most `chips_per_host`."""
        return self.chips // self.hosts

    @property
    def slice_name(self) -> str:
        """Name of these TPUs for Cloud TPU and xpk, such as v5litepod-16."""
        return f"{self.properties['slice_name']}-{self.chips * self.properties['counted_per_chip']}"

    @property
    def machine_type(self) -> str:
        """Machine type of the nodes of a GKE node pool."""
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
    """Returns the properties of each machine type, from accelerators.yaml."""
    text = importlib.resources.files("bandtok_jax.runtime").joinpath("accelerators.yaml").read_text()
    return yaml.safe_load(text)


def parse(text: str) -> Accelerators:
    """Returns the accelerators that a text such as `v5e:4x4` names.

    Raises:
      ValueError: the type is unknown, or the shape is no number of chips.
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
        raise ValueError(f"{text!r} has no number of chips: write {name}:SHAPE, such as {name}:{example}")
    return Accelerators(name, topology, types[name])
