"""The rooms of the package by floor, the imports between its files, and the drawing docs/architecture.svg.

python -m tests.import_graph    writes the drawing
"""

import ast
from collections.abc import Iterator
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "bandtok_jax"
BESIDE = ("configs", "data_pipelines", "launch")  # folders at the top of the tree that are installed inside the package
LOOSE = ("__init__", "__main__", "version")

# From top to bottom: a file imports from its own room and from rooms below, not from one on the same floor.
FLOORS = (
    ("launch",),
    ("cli",),
    ("demo",),
    ("commands",),
    ("planning",),
    ("training",),
    ("evaluation/report",),
    ("evaluation/comparison",),
    ("evaluation/metrics",),
    ("pretrained",),
    ("tasks",),
    ("codecs",),
    ("generation",),
    ("models", "losses"),
    ("layers",),
    ("config",),
    ("configs", "plotting"),
    ("data_pipelines",),
    ("audio",),
    ("formats",),
    ("runs",),
    ("runtime",),
)
PURPOSES = {
    "launch": "machines and jobs",
    "cli": "verbs, flags, messages",
    "demo": "a page in the browser on this machine",
    "commands": "the work of each verb, from Python",
    "planning": "memory and time of a step on absent devices",
    "training": "loop, checkpoints, reporting, processes",
    "evaluation/report": "tables, figures, pages",
    "evaluation/comparison": "references, systems, runner",
    "evaluation/metrics": "metrics of audio and of tokens",
    "pretrained": "model folders, cards, importers",
    "tasks": "training steps as pure functions",
    "codecs": "components wired together",
    "generation": "autoregressive decoding, flow sampling",
    "models": "networks of the papers",
    "losses": "pure loss functions",
    "layers": "blocks that models share",
    "config": "load and validate",
    "configs": "one file a system",
    "plotting": "figures",
    "data_pipelines": "records, crops, mixtures",
    "audio": "files, STFT, mel, loudness",
    "formats": ".bt, safetensors, PyTorch files",
    "runs": "a run folder on disk",
    "runtime": "storage, platform, progress",
}


def files() -> dict[str, pathlib.Path]:
    """Returns every module of the package by its dotted name below the package."""
    modules = {}
    for folder in (PACKAGE, *BESIDE):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / PACKAGE if folder == PACKAGE else ROOT).with_suffix("").parts
            if folder == PACKAGE and parts[0] in BESIDE:
                continue  # links
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def room(module: str) -> str:
    """Returns the room of a module; "" for the loose files at the root of the package."""
    parts = module.split(".")
    if parts[0] in LOOSE:
        return ""
    return "/".join(parts[:2]) if parts[0] == "evaluation" and len(parts) > 1 else parts[0]


def floor(name: str) -> int:
    """Returns the number of a room's floor, from the bottom; `__init__` stands above all, `version` below."""
    return next(number for number, rooms in enumerate(reversed(FLOORS)) if name in rooms)


def imports() -> Iterator[tuple[str, str]]:
    """Yields (importing module, imported module), imports inside functions included."""
    modules = files()
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if _below(name) in modules else node.module for name in targets]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE]
            else:
                continue
            yield from ((module, _below(target)) for target in targets if _below(target) != module)


def _below(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".") or "__init__"


def circles(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Returns groups of nodes that reach each other (strongly connected components of more than one node)."""
    following: dict[str, set[str]] = {}
    for start, end in arrows:
        following.setdefault(start, set()).add(end)

    def reachable(start: str) -> set[str]:
        seen, waiting = set(), list(following.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(following.get(node, ()))
        return seen

    reach = {node: reachable(node) for node in following}
    groups = {frozenset(other for other in reach if other in reach[node] and node in reach[other]) for node in reach}
    return sorted(sorted(group) for group in groups if group)


WIDTH, HEIGHT, GAP = 900, 40, 12


def drawing() -> str:
    """Returns the rooms as an SVG, floor below floor, each with the number of rooms that import from it."""
    users: dict[str, set[str]] = {}
    for start, end in imports():
        if room(start) and room(end) and room(start) != room(end):
            users.setdefault(room(end), set()).add(room(start))
    height = len(FLOORS) * (HEIGHT + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, rooms in enumerate(FLOORS):
        y, width = GAP + number * (HEIGHT + GAP), (WIDTH - GAP) / len(rooms) - GAP
        for place, name in enumerate(rooms):
            x = GAP + place * (width + GAP)
            above = len(users.get(name, ()))
            lines += [
                f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="4" fill="#eef3f8" stroke="#4a6a8a"/>',
                f'<text x="{x + 12:g}" y="{y + 25}" font-weight="bold" fill="#1d2b3a">{name}</text>',
                f'<text x="{x + 185:g}" y="{y + 25}" fill="#1d2b3a">{PURPOSES[name]}</text>',
                f'<text x="{x + width - 12:g}" y="{y + 25}" text-anchor="end" fill="#4a6a8a">'
                f"used by {above} room{'s' * (above != 1)}</text>",
            ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(drawing())
