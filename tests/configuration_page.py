"""The page docs/configuration.md, made from the configurations of the package.

python -m tests.configuration_page    writes the page
"""

from bandtok_jax.commands import describe_config
from bandtok_jax.config import load, shipped
from tests.import_graph import ROOT

PATH = ROOT / "docs" / "configuration.md"
VARIANTS = ("tiny", "small", "base")
HEAD = """# Configuration

This page is generated with `python -m tests.configuration_page`. `bandtok config NAME:VARIANT` prints the same for one
configuration. `--config.KEY=VALUE` sets a key. A column with one value stands for all three variants.
"""


def page() -> str:
    """Returns the page: one table for each configuration, with the value of each key in each variant."""
    tables = [HEAD]
    for name in shipped.list_configs():
        configs = [load.load_config(f"{name}:{variant}") for variant in VARIANTS]
        values = [dict(describe_config.flat(config)) for config in configs]
        meanings = describe_config.descriptions(configs[0])
        lines = [f"## {name}\n", "| key | tiny, small, base | meaning |", "|---|---|---|"]
        for key, meaning in meanings.items():
            shown = [f"`{value[key]}`" if value[key] else "empty" for value in values]
            shown = shown if len(set(shown)) > 1 else shown[:1]
            lines.append(f"| `{key}` | {', '.join(shown)} | {meaning.replace('|', chr(92) + '|')} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


if __name__ == "__main__":
    PATH.write_text(page())
