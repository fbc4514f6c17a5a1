"""Plan of a training step: memory, arithmetic, communication and time, per chip and step."""

import dataclasses

from bandtok_jax.planning.collectives import Collective, Hosts, Torus

GIB = 2**30


@dataclasses.dataclass
class Plan:
    """Cost of one step of one configuration on given accelerators; all numbers are per chip and step.

    Attributes:
      machines: type and topology, such as "v5e:4x4".
      phase: active parts of the step, from `task.phase`.
      compiled: true if XLA compiled the step for these chips, false for a model of the step.
      quick: compiled with less effort.
      fits: the memory of a chip is sufficient.
      problem: the reason if it does not fit.
      bytes: {"state", "temporaries", "program", "total"}, each if it is known.
      model_flops: FLOPs that the model needs.
      program_flops: computed FLOPs, including rematerialisation.
      traffic_bytes: memory traffic, in compiled programs only.
      gradient_bytes: size of all gradients, in the dtype of the computation.
      collectives: {kind: {"runs", "bytes", "seconds"}}.
      seconds: {"arithmetic", "memory", "collectives"} at the published peaks. In compiled programs also "step", and
        "cycles", the step time that the compiler expects of its own schedule.
      peak_flops: FLOP/s.
    """

    machines: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    accumulation_steps: int
    phase: dict[str, bool]
    compiled: bool
    quick: bool
    memory_gib: float
    peak_flops: float
    fits: bool = True
    problem: str = ""
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    model_flops: float = 0.0
    program_flops: float = 0.0
    traffic_bytes: float = 0.0
    gradient_bytes: int = 0
    collectives: dict[str, dict] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def examples_per_chip(self) -> float:
        """Examples per chip and step."""
        return self.batch_size / self.chips

    @property
    def collective_share(self) -> float:
        """Share of the collectives in the step time at the published peaks, the highest one without memory traffic."""
        working = max(self.seconds["arithmetic"], self.seconds["memory"])
        return self.seconds["collectives"] / (working + self.seconds["collectives"])

    def utilization(self, name: str) -> float:
        """Returns the model FLOPs utilization if a step takes `seconds[name]`."""
        return self.model_flops / self.peak_flops / self.seconds[name]

    def add_times(self, properties: dict, collectives: list[Collective], links: Torus | Hosts) -> None:
        """Sets collectives and times at the published peaks.

        A step takes the longer one of arithmetic and memory traffic, plus all communication, without overlap.

        Args:
          properties: entry of the machine type in accelerators.yaml.
        """
        for collective in collectives:
            entry = self.collectives.setdefault(collective.kind, {"runs": 0, "bytes": 0, "seconds": 0.0})
            entry["runs"] += collective.runs
            entry["bytes"] += collective.bytes * collective.runs
            entry["seconds"] += links.seconds(collective)
        seconds = {
            "arithmetic": self.program_flops / self.peak_flops,
            "memory": self.traffic_bytes / (properties["memory_gbytes_per_second"] * 1e9),
            "collectives": sum(entry["seconds"] for entry in self.collectives.values()),
        }
        if self.compiled:  # else the memory traffic is not known
            seconds["step"] = max(seconds["arithmetic"], seconds["memory"]) + seconds["collectives"]
        self.seconds = seconds
