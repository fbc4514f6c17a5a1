"""Plans as tables for reading and as JSON for programs."""

import dataclasses
import json

from bandtok_jax.planning.plan import GIB, Plan

NOTABLE_COLLECTIVE_SHARE = 0.15  # of the step, from which the text suggests larger batches (our choice)


def format_plan(plan: Plan, name: str) -> str:
    """Returns one plan as a table; `name` is that of the configuration."""
    examples = f"{plan.examples_per_chip:g} example{'s' if plan.examples_per_chip != 1 else ''} a chip"
    micro = f" in {plan.accumulation_steps} micro-batches" if plan.accumulation_steps > 1 else ""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{name} on {plan.machines}: {plan.chips} chips, mesh {mesh}",
        f"batch_size {plan.batch_size}, {examples}{micro}",
        _method(plan),
    ]
    if active := [part for part, is_active in plan.phase.items() if is_active]:
        lines.append(f"phase of the training: {', '.join(active)}")
    lines += ["", *_memory(plan)]
    if plan.seconds:
        lines += ["", *_work(plan), "", *_collectives(plan), "", *_times(plan)]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _method(plan: Plan) -> str:
    """Returns the origin of the numbers."""
    if not plan.compiled:
        return "from a model of the step, neither compiled nor run"
    return f"compiled for these chips{' with --quick' if plan.quick else ''}, not run"


def _row(name: str, value: str, remark: str = "") -> str:
    """Returns one line of a table."""
    return f"  {name:<22}{value:>12}  {remark}".rstrip()


def _memory(plan: Plan) -> list[str]:
    """Returns the lines of the memory of a chip."""
    remarks = {"state": "weights, moments, EMA, frozen networks", "temporaries": "", "program": "", "total": ""}
    remarks["temporaries"] = "" if plan.compiled else "gradients and activations"
    lines = ["memory of a chip"]
    lines += [_row(key, f"{plan.bytes[key] / GIB:.2f} GiB", remarks[key]) for key in remarks if key in plan.bytes]
    result = "fits" if plan.fits else f"does not fit: {plan.problem}"
    lines[-1] = f"{lines[-1].rstrip()}  of {plan.memory_gib:g} GiB: {result}"
    return lines


def _work(plan: Plan) -> list[str]:
    """Returns the lines of arithmetic and memory traffic."""
    lines = ["work of a chip per step"]
    lines.append(_row("model FLOPs", f"{plan.model_flops / 1e12:.3f} T", "by formula"))
    ratio = f"{plan.program_flops / plan.model_flops:.2f} times the model FLOPs, with rematerialisation"
    lines.append(_row("FLOPs of the program", f"{plan.program_flops / 1e12:.3f} T", ratio))
    if plan.compiled:
        lines.append(_row("memory traffic", f"{plan.traffic_bytes / 1e9:.1f} GB"))
    return lines


def _collectives(plan: Plan) -> list[str]:
    """Returns a line for each kind of collective, and one for all gradients."""
    lines = ["collectives per step" + ("" if plan.compiled else ", by formula")]
    for kind, entry in sorted(plan.collectives.items()):
        size, runs = f"{entry['bytes'] / 1e6:.1f} MB", f"in {entry['runs']}"
        lines.append(_row(kind, size, f"{runs:<10}{1e3 * entry['seconds']:.2f} ms"))
    if not plan.collectives:
        lines.append("  none")
    return [*lines, _row("all gradients", f"{plan.gradient_bytes / 1e6:.1f} MB", "by formula, for comparison")]


def _times(plan: Plan) -> list[str]:
    """Returns the lines of the step time, with advice if communication takes a large share."""
    seconds = plan.seconds
    lines = ["time of a step at the published peaks, without overlap"]
    lines.append(_row("arithmetic", f"{1e3 * seconds['arithmetic']:.1f} ms"))
    lines.append(_row("memory", f"{1e3 * seconds['memory']:.1f} ms" if plan.compiled else "not modelled"))
    share = f"{plan.collective_share:.1%} of the step{'' if plan.compiled else ' at most'}"
    lines.append(_row("collectives", f"{1e3 * seconds['collectives']:.1f} ms", share))
    if step := seconds.get("step"):
        remark = f"MFU {plan.utilization('step'):.0%} at most, {plan.batch_size / step:.0f} examples/s on all chips"
        lines.append(_row("step", f"{1e3 * step:.1f} ms", remark))
    if "cycles" in seconds:
        remark = f"MFU {plan.utilization('cycles'):.0%}, by the compiler's own schedule"
        lines.append(_row("step by cycles", f"{1e3 * seconds['cycles']:.1f} ms", remark))
    if plan.collective_share > NOTABLE_COLLECTIVE_SHARE:
        lines.append(
            f"collectives take more than {NOTABLE_COLLECTIVE_SHARE:.0%} of the step: raise batch_size "
            "or lower optimizer.accumulation_steps"
        )
    return lines


def format_table(plans: list[Plan]) -> str:
    """Returns plans as a Markdown table with one line for each."""
    head = ("chips", "shape", "mesh", "memory GiB", "step ms", "collectives", "MFU at most", "cycles ms", "examples/s")
    rows = [head, ("---:", *["---"] * 2, *["---:"] * 6)]
    for plan in plans:
        shape = plan.machines.partition(":")[2]
        mesh = "x".join(str(size) for size in plan.mesh.values())
        memory = f"{plan.bytes['total'] / GIB:.2f}" if "total" in plan.bytes else "?"
        if not plan.fits:
            rows.append((str(plan.chips), shape, mesh, f"{memory}: does not fit", *["-"] * 5))
            continue
        step, cycles = plan.seconds.get("step"), plan.seconds.get("cycles")
        rows.append(
            (
                str(plan.chips),
                shape,
                mesh,
                memory,
                f"{1e3 * step:.1f}" if step else "-",
                f"{plan.collective_share:.1%}",
                f"{plan.utilization('step'):.0%}" if step else "-",
                f"{1e3 * cycles:.1f}" if cycles else "-",
                f"{plan.batch_size / step:.0f}" if step else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)) + " |" for row in rows)


def to_json(plans: list[Plan]) -> str:
    """Returns plans as JSON, one line for each."""
    return "\n".join(json.dumps(dataclasses.asdict(plan)) for plan in plans)
