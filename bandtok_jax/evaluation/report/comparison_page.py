"""The page of `bandtok evaluate`: one static file beside its audio and figures."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bandtok_jax.evaluation.comparison.result_files import audio_path
from bandtok_jax.evaluation.metrics.catalogue import Column
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.evaluation.report import aggregate, page
from bandtok_jax.evaluation.report.figures import ReportFigure
from bandtok_jax.evaluation.report.page import Cell, Html, html, number
from bandtok_jax.evaluation.report.report_data import Report


def render(report: Report, quality: Sequence[ReportFigure], excerpt_figures: Sequence[ReportFigure]) -> Html:
    """Returns the whole page.

    Args:
      report: its content.
      quality: figures of quality against bitrate, if any.
      excerpt_figures: figures of the report's excerpt.
    """
    data = report.data
    sections = [
        page.summary(
            f"{len(report.systems)} systems, {data['files']} files, {data['segments']} segments, "
            f"{data['seconds'] / 60:.1f} minutes of audio"
        ),
        _system_table(report),
        page.heading("Means"),
        Html(
            "<p>With the half width of the 95&nbsp;% interval over files; the best mean is marked. &darr;: lower is "
            "better, &uarr;: higher.</p>"
        ),
        _means_table(report, aggregate.ALL),
        *(page.details(domain, _means_table(report, domain)) for domain in list(report.means)[1:]),
    ]
    if quality:
        sections += [
            page.heading("Quality against bitrate"),
            page.paragraph(
                "By the nominal bitrate of codecs, and the size on disk of other systems. A line is one codec at "
                "several bitrates."
            ),
            _figures(quality),
        ]
    sections += [page.heading("One segment"), page.paragraph(_excerpt_text(report)), _figures(excerpt_figures)]
    if report.tokens:
        sections += [page.heading("Codes"), page.paragraph(_CODES_TEXT), *_token_tables(report)]
    sorted_by = report.metrics[report.sort_by]
    extreme = "lowest" if sorted_by.better == "higher" else "highest"
    return page.page(
        report.title,
        *sections,
        page.heading("Listen"),
        page.paragraph(
            f"The worst segments first: those with the {extreme} {sorted_by.label} in the mean over the systems."
        ),
        _audio_table(report),
        page.heading("Notes"),
        html("<ul>{items}</ul>", items=[html("<li>{note}</li>", note=note) for note in report.notes]),
        Html(
            "<p>The same numbers: <a href=summary.csv>summary.csv</a>, <a href=files.csv>files.csv</a> of each file, "
            "<a href=report.json>report.json</a> with the codes row by row.</p>"
        ),
    )


_CODES_TEXT = (
    "Use, entropy and perplexity are of all rows in one histogram where they are bands, which share a codebook, and "
    "the mean of the rows where they are residual levels, which have one each. Bitrates in kbit/s, of all rows: "
    "entropy is the lower bound for a coder with the histogram of each row, adaptive that of a coder that learns the "
    "histograms (Krichevsky, Trofimov), over all segments in one stream."
)


def _excerpt_text(report: Report) -> str:
    excerpt = report.excerpt
    start = excerpt["start_seconds"]
    return (
        f"{excerpt['file']}, from {start:.1f} to {start + excerpt['seconds']:.1f} s, where it is loudest. Chosen by "
        f"{excerpt['chosen_by']}; --figure-piece draws another. Each figure opens as SVG."
    )


def _figures(items: Sequence[ReportFigure]) -> Html:
    return page.figures(
        page.figure(
            f"{quote(item.stem)}.png",
            item.title,
            caption=f"{item.title}. {item.meaning}" if item.meaning else item.title,
            link=f"{quote(item.stem)}.svg",
        )
        for item in items
    )


def _system_table(report: Report) -> Html:
    rows = []
    for name, system in report.systems.items():
        rate = Html("&ndash;")
        if system["kind"] == "codec":
            description = (
                f"{system['rows']} {system['row_kind']} rows of {system['codebook_size']} codes, "
                f"{system['columns_per_second']:.2f} columns a second, {system['sample_rate_hz']} Hz"
            )
            rate = f"{system['bits_per_second'] / 1000:.2f}"
        else:
            description = system.get("command") or f"decoded files in {system['path']}"
        rows.append((name, Cell(description, "text"), rate))
    return page.table(["system", Cell("description", "text"), Cell("nominal kbit/s")], rows)


def _means_table(report: Report, domain: str) -> Html:
    systems = report.means[domain]
    rows = [
        _means_row(column, {system: means[name] for system, means in systems.items()})
        for name, column in report.metrics.items()
    ]
    meaning = "Frechet distance of the embeddings of these segments; see the notes"
    for name, values in report.frechet[domain].items():
        means = {system: aggregate.Mean(values[system], None, 0, 0) for system in systems}
        rows.append(_means_row(Column(name, "", "lower", meaning), means))
    return page.table(["metric", *(Cell(system, "number", columns=2) for system in systems)], rows)


def _means_row(column: Column, means: Mapping[str, aggregate.Mean]) -> list[Cell]:
    arrow = Html({"lower": " &darr;", "higher": " &uarr;"}.get(column.better, ""))
    unit = html(" <small>{unit}</small>", unit=column.unit) if column.unit else Html()
    label = html("{label}{unit}{arrow}", label=column.label, unit=unit, arrow=arrow)
    cells, best = [Cell(label, title=column.meaning)], aggregate.best(means, column.better)
    for system, mean in means.items():
        width = Html() if mean.half_width is None else html("&plusmn;&nbsp;{width}", width=number(mean.half_width))
        left_out = f" {mean.left_out} left out" if mean.left_out else ""
        mark = " best" if system in best else ""
        cells.append(Cell(number(mean.mean), f"mean{mark}"))
        cells.append(Cell(Html(width + left_out), f"width{mark}"))
    return cells


def _token_tables(report: Report) -> list[Html]:
    """Returns a table of all codecs, and one of the rows of each."""
    head = [Cell("codes", "text"), "use", "entropy (bit)", "perplexity", "nominal", "entropy", "adaptive"]
    overview, by_codec = [], []
    for name, tokens in report.tokens.items():
        rates = [f"{tokens['bits_per_second'][kind] / 1000:.3f}" for kind in ("nominal", "entropy", "adaptive")]
        together = _token_row(name, tokens["together"], rates)
        rows = [_token_row(f"row {i}", row, [""] * len(rates)) for i, row in enumerate(tokens["rows"])]
        overview.append(together)
        by_codec.append(page.details(f"{name}, row by row", page.table(head, [together, *rows])))
    return [page.table(head, overview), *by_codec]


def _token_row(name: str, row: Mapping[str, Any], rates: Sequence[str]) -> list[str]:
    return [name, f"{row['use']:.1%}", f"{row['entropy']:.2f}", f"{row['perplexity']:.0f}", *rates]


def _audio_table(report: Report) -> Html:
    names = [REFERENCE, *report.systems]
    rows = []
    for segment, group in report.worst:
        domain = segment.reference.domain
        small = html("<br><small>{domain}</small>", domain=domain) if domain else Html()
        cells: list[str] = [html("{label}{small}", label=segment.label, small=small)]
        for name in names:
            value = Html()
            if name != REFERENCE:
                value = html("<div>{value}</div>", value=number(group[name].values.get(report.sort_by)))
            audio = page.audio_element(quote(audio_path("", name, segment)))
            cells.append(html("{value}{audio}", value=value, audio=audio))
        rows.append(cells)
    return page.table(["segment", *names], rows)
