"""The files of the report of `bandtok evaluate`: report.json, files.csv, summary.csv and index.html in one folder."""

import dataclasses
import json
import os
from typing import Any

from bandtok_jax.evaluation.metrics import token_statistics
from bandtok_jax.evaluation.metrics.catalogue import Column
from bandtok_jax.evaluation.report import aggregate, comparison_page, figures
from bandtok_jax.evaluation.report.excerpt import Excerpt
from bandtok_jax.evaluation.report.report_data import Report
from bandtok_jax.runtime import storage
from bandtok_jax.version import VERSION


def write(output: str, report: Report, excerpt: Excerpt) -> None:
    """Writes a report and the figures of its excerpt to the folder `output`, which holds the results."""
    quality = figures.draw_quality(output, report)
    excerpt_figures = figures.draw_excerpt(output, excerpt)
    storage.write_text(os.path.join(output, "report.json"), json.dumps(_as_json(report), indent=1) + "\n")
    aggregate.write_csv(os.path.join(output, "files.csv"), report.lines)
    aggregate.write_csv(os.path.join(output, "summary.csv"), _summary_lines(report))
    page = comparison_page.render(report, quality, excerpt_figures)
    storage.write_text(os.path.join(output, "index.html"), page)


def _summary_lines(report: Report) -> list[dict[str, Any]]:
    """Returns the lines of summary.csv."""
    lines = []
    for domain, systems in report.means.items():
        for system, means in systems.items():
            for name, mean in means.items():
                low = high = None
                if mean.mean is not None and mean.half_width is not None:
                    low, high = mean.mean - mean.half_width, mean.mean + mean.half_width
                lines.append(
                    {
                        "domain": domain,
                        "system": system,
                        "metric": name,
                        "unit": report.metrics[name].unit,
                        "better": report.metrics[name].better,
                        "mean": mean.mean,
                        "low": low,
                        "high": high,
                        "files": mean.files,
                        "left_out": mean.left_out,
                    }
                )
    for domain, distances in report.frechet.items():
        for name, values in distances.items():
            for system, value in values.items():
                lines.append({"domain": domain, "system": system, "metric": name, "better": "lower", "mean": value})
    for domain, systems in report.codes.items():
        for system, values in systems.items():
            for name, value in values.items():
                unit = token_statistics.COLUMNS[name]
                lines.append({"domain": domain, "system": system, "metric": name, "unit": unit, "mean": value})
    return lines


def _as_json(report: Report) -> dict[str, Any]:
    """Returns the content of report.json."""
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    for name in ("lines", "worst", "means", "metrics", "title", "sort_by"):
        del fields[name]
    column_fields = [field.name for field in dataclasses.fields(Column)]
    return {
        "version": VERSION,
        **fields,
        "metrics": {
            name: {field: getattr(column, field) for field in column_fields} for name, column in report.metrics.items()
        },
        "means": {
            domain: {
                system: {name: dataclasses.asdict(mean) for name, mean in means.items()}
                for system, means in systems.items()
            }
            for domain, systems in report.means.items()
        },
        "worst_first": {
            "by": report.sort_by,
            "segments": [
                {"segment": segment.stem}
                | {system: result.values.get(report.sort_by) for system, result in group.items()}
                for segment, group in report.worst
            ],
        },
    }
