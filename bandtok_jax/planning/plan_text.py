"""Plans as text for people, and as JSON for programs."""

import dataclasses
import json

from bandtok_jax.planning.plan import GIB, Plan

COLLECTIVES_MATTER = 0.15  # of the step (our choice)


def text(found: Plan, name: str) -> str:
    """One plan as a table; `name` of the configuration."""
    examples = f"{found.examples:g} example{'s' if found.examples != 1 else ''} a chip"
    micro = f" in {found.accumulation_steps} micro-batches" if found.accumulation_steps > 1 else ""
    mesh = " ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    lines = [
        f"{name} on {found.machines}: {found.chips} chips, mesh {mesh}",
        f"batch_size {found.batch_size}, {examples}{micro}",
        _how(found),
    ]
    if found.phase:
        lines.append("phase of the training: " + ", ".join(name for name, on in found.phase.items() if on))
    lines += ["", *_memory(found)]
    if found.seconds:
        lines += ["", *_work(found), "", *_collectives(found), "", *_times(found)]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _how(found: Plan) -> str:
    if not found.compiled:
        return "by a model of the step, neither compiled nor run"
    return f"compiled for these chips{', quickly' if found.quick else ''}, not run"


def _row(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<22}{value:>12}  {remark}".rstrip()


def _memory(found: Plan) -> list[str]:
    names = {"state": "weights, moments, averages", "temporaries": "", "program": "", "total": ""}
    names["temporaries"] = "" if found.compiled else "gradients and activations"
    lines = ["memory of a chip"]
    lines += [_row(key, f"{found.bytes[key] / GIB:.2f} GiB", names[key]) for key in names if key in found.bytes]
    verdict = f"of {found.memory_gib:g} GiB: " + ("fits" if found.fits else f"does not fit: {found.problem}")
    lines[-1] = f"{lines[-1].rstrip()}  {verdict}"
    return lines


def _work(found: Plan) -> list[str]:
    lines = ["work of a chip in a step"]
    lines.append(_row("model FLOPs", f"{found.model_flops / 1e12:.3f} T", "by formula"))
    more = f"{found.program_flops / found.model_flops:.2f} times as many, with what is computed again"
    lines.append(_row("FLOPs of the program", f"{found.program_flops / 1e12:.3f} T", more))
    if found.compiled:
        lines.append(_row("memory traffic", f"{found.traffic_bytes / 1e9:.1f} GB"))
    return lines


def _collectives(found: Plan) -> list[str]:
    lines = ["collectives in a step" + ("" if found.compiled else ", by formula")]
    for kind, entry in sorted(found.collectives.items()):
        size, runs = f"{entry['bytes'] / 1e6:.1f} MB", f"in {entry['runs']}"
        lines.append(_row(kind, size, f"{runs:<10}{1e3 * entry['seconds']:.2f} ms"))
    if not found.collectives:
        lines.append("  none")
    return [*lines, _row("all gradients", f"{found.gradient_bytes / 1e6:.1f} MB", "by formula, to compare with")]


def _times(found: Plan) -> list[str]:
    seconds = found.seconds
    lines = ["time of a step at the published peaks, nothing hidden behind anything"]
    lines.append(_row("arithmetic", f"{1e3 * seconds['arithmetic']:.1f} ms"))
    memory = f"{1e3 * seconds['memory']:.1f} ms" if found.compiled else "not modelled"
    lines.append(_row("memory", memory))
    lines.append(
        _row("collectives", f"{1e3 * seconds['collectives']:.1f} ms", f"{found.collective_share:.1%} of the step")
    )
    rate = f"{found.batch_size / seconds['step']:.0f} examples/s on all chips"
    lines.append(
        _row("step", f"{1e3 * seconds['step']:.1f} ms", f"MFU {found.utilization('step'):.0%} at most, {rate}")
    )
    if "cycles" in seconds:
        remark = f"MFU {found.utilization('cycles'):.0%}, as the compiler expects of its own schedule"
        lines.append(_row("step by cycles", f"{1e3 * seconds['cycles']:.1f} ms", remark))
    if found.collective_share > COLLECTIVES_MATTER:
        lines.append(
            f"collectives take more than {COLLECTIVES_MATTER:.0%} of the step: more examples a chip (batch_size) "
            "or fewer micro-batches (optimizer.accumulation_steps) lower their share"
        )
    return lines


def table(plans: list[Plan]) -> str:
    """Weak scaling: a line a plan, as a table that Markdown reads too."""
    head = ("chips", "shape", "mesh", "memory GiB", "step ms", "collectives", "MFU at most", "cycles ms", "examples/s")
    rows = [head, ("---:", *["---"] * 2, *["---:"] * 6)]
    for found in plans:
        shape = found.machines.partition(":")[2]
        mesh = "x".join(str(size) for size in found.mesh.values())
        memory = f"{found.bytes['total'] / GIB:.2f}" if "total" in found.bytes else "?"
        if not found.fits:
            rows.append((str(found.chips), shape, mesh, f"{memory}: does not fit", *["-"] * 5))
            continue
        step, cycles = found.seconds["step"], found.seconds.get("cycles")
        rows.append(
            (
                str(found.chips),
                shape,
                mesh,
                memory,
                f"{1e3 * step:.1f}",
                f"{found.collective_share:.1%}",
                f"{found.utilization('step'):.0%}",
                f"{1e3 * cycles:.1f}" if cycles else "-",
                f"{found.batch_size / step:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)) + " |" for row in rows)


def as_json(plans: list[Plan]) -> str:
    """A line of JSON a plan."""
    return "\n".join(json.dumps(dataclasses.asdict(found)) for found in plans)
