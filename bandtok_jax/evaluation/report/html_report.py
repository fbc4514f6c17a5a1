"""The page of `bandtok evaluate`: one static file beside its sounds, without anything from elsewhere."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from bandtok_jax.evaluation.comparison.runner import sound_path
from bandtok_jax.evaluation.metrics.catalogue import Measure
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.evaluation.report.figures import Picture


def html(report, sort_by: str, quality: Sequence[Picture], sounds: Sequence[Picture]) -> str:
    """The whole page.

    Args:
      report: a `comparison.Report`.
      sort_by: the measure by which the pieces are sorted.
      quality: figures of quality against bitrate, perhaps none.
      sounds: figures of the report's excerpt.
    """
    data = report.data
    facts = (
        f"{len(report.systems)} systems, {data['files']} files, {data['pieces']} pieces, "
        f"{data['seconds'] / 60:.1f} minutes of sound"
    )
    body = [
        f"<p class=facts>{facts}</p>",
        _system_table(report),
        "<h2>Means</h2><p>With the half width of the 95&nbsp;% interval over files; the best mean is marked. "
        "&darr;: lower is better, &uarr;: higher.</p>",
        _means_table(report, aggregate.ALL),
    ]
    for domain in list(report.means)[1:]:
        body.append(f"<details><summary>{escape(domain)}</summary>{_means_table(report, domain)}</details>")
    if quality:
        said = (
            "By the nominal bitrates of codecs, and the size on disk of others. A line is one codec at several rates."
        )
        body.append(f"<h2>Quality against bitrate</h2><p>{said}</p>{_pictures(quality)}")
    body += ["<h2>One piece</h2>", f"<p>{escape(_excerpt(report))}</p>", _pictures(sounds)]
    if report.tokens:
        body += ["<h2>Codes</h2>", _token_table(report)]
    sorting = report.measures[sort_by]
    extreme = "lowest" if sorting.better == "higher" else "highest"
    body += [
        "<h2>Listen</h2>",
        f"<p>The worst pieces first: with the {extreme} {escape(sorting.label)} in the mean over the systems.</p>",
        _players(report, sort_by),
        "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>",
        "<p>The same numbers: <a href=summary.csv>summary.csv</a>, <a href=files.csv>files.csv</a> of each file, "
        "<a href=report.json>report.json</a> with the codes row by row.</p>",
    ]
    return document(report.title, "\n".join(body))


def _excerpt(report) -> str:
    excerpt = report.excerpt
    last = excerpt["first_second"] + excerpt["seconds"]
    return (
        f"{excerpt['file']}, from {excerpt['first_second']:.1f} to {last:.1f} s, where it is loudest. Chosen by "
        f"{excerpt['chosen_by']}; --figure-piece draws another. Each picture opens as SVG."
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    drawn = []
    for picture in pictures:
        file, said = quote(picture.stem), f"{picture.title}. {picture.meaning}" if picture.meaning else picture.title
        image = f'<img src="{file}.png" alt="{escape(picture.title)}">'
        drawn.append(f'<figure><a href="{file}.svg">{image}</a><figcaption>{escape(said)}</figcaption></figure>')
    return f"<div class=pictures>{''.join(drawn)}</div>"


def number(value: float | None) -> str:
    """Three digits after the point for small numbers, none for large ones; a dash for what is not defined."""
    if value is None:
        return "&ndash;"
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}".replace("-", "&minus;")


def table(head: list[str], rows: list[str]) -> str:
    """Returns an HTML table of cells that are HTML already, with a scroll bar of its own where it is broad."""
    return f"<div class=wide><table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _system_table(report) -> str:
    rows = []
    for name, facts in report.systems.items():
        if facts["kind"] == "codec":
            described = (
                f"{facts['rows']} {facts['row_kind']} rows of {facts['codebook_size']} codes, "
                f"{facts['columns_per_second']:.2f} columns a second, {facts['sample_rate_hz']} Hz"
            )
            rate = f"{facts['bits_per_second'] / 1000:.2f}"
        else:
            described = facts.get("command") or f"decoded files in {facts['path']}"
            rate = "&ndash;"
        rows.append(f"<tr><th>{escape(name)}</th><td class=text>{escape(described)}</td><td>{rate}</td></tr>")
    return table(["<th>system</th>", "<th class=text>what it is</th>", "<th>nominal kbit/s</th>"], rows)


def _means_table(report, domain: str) -> str:
    systems = report.means[domain]
    rows = [
        _means_row(measure, {system: means[name] for system, means in systems.items()})
        for name, measure in report.measures.items()
    ]
    meaning = "Frechet distance of the embeddings of these pieces; see the notes"
    for name, values in report.frechet[domain].items():
        means = {system: aggregate.Mean(values[system], None, 0, 0) for system in systems}
        rows.append(_means_row(Measure(name, "", "lower", meaning), means))
    return table(
        ["<th>measure</th>", *(f"<th class=number colspan=2>{escape(system)}</th>" for system in systems)], rows
    )


def _means_row(measure: Measure, means: dict[str, aggregate.Mean]) -> str:
    arrow = {"lower": " &darr;", "higher": " &uarr;"}.get(measure.better, "")
    unit = f" <small>{escape(measure.unit)}</small>" if measure.unit else ""
    best, cells = aggregate.best(means, measure.better), []
    for system, found in means.items():
        width = "" if found.half_width is None else f"&plusmn;&nbsp;{number(found.half_width)}"
        left_out = f" {found.left_out} left out" if found.left_out else ""
        mark = " best" if system in best else ""
        cells.append(f'<td class="mean{mark}">{number(found.mean)}</td><td class="width{mark}">{width}{left_out}</td>')
    head = f'<th title="{escape(measure.meaning)}">{escape(measure.label)}{unit}{arrow}</th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def _token_table(report) -> str:
    head = ["codes", "use", "entropy (bit)", "perplexity", "nominal", "entropy", "adaptive"]
    titles = [f"<th class={'number' if i else 'text'}>{text}</th>" for i, text in enumerate(head)]
    tables = []
    for name, tokens in report.tokens.items():
        rates = [f"{tokens['bits_per_second'][kind] / 1000:.3f}" for kind in ("nominal", "entropy", "adaptive")]
        rows = [_token_row(escape(name), tokens["together"], rates)]
        rows += [_token_row(f"row {i}", row, [""] * len(rates)) for i, row in enumerate(tokens["rows"])]
        tables.append(rows)
    overview = table(titles, [rows[0] for rows in tables])
    details = "".join(
        f"<details><summary>{escape(name)}, row by row</summary>{table(titles, rows)}</details>"
        for name, rows in zip(report.tokens, tables)
    )
    return (
        "<p>Use, entropy and perplexity are of all rows in one histogram where they are bands, which share a codebook, "
        "and the mean of the rows where they are residual levels, which have one each. Bitrates in kbit/s, of all "
        "rows: entropy is the lower bound for a coder that knows the histogram of each row beforehand, adaptive that "
        "of a coder that learns it as it goes (Krichevsky, Trofimov), over all pieces in one stream.</p>"
        f"{overview}{details}"
    )


def _token_row(head: str, row: dict, rates: list[str]) -> str:
    cells = [f"{row['use']:.1%}", f"{row['entropy']:.2f}", f"{row['perplexity']:.0f}", *rates]
    return f"<tr><th>{head}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _players(report, sort_by: str) -> str:
    names = [REFERENCE, *report.systems]
    rows = []
    for piece, group in report.worst:
        cells = []
        for name in names:
            value = "" if name == REFERENCE else f"<div>{number(group[name].values.get(sort_by))}</div>"
            source = quote(sound_path("", name, piece))
            cells.append(f'<td>{value}<audio controls preload=none src="{source}"></audio></td>')
        domain = f"<br><small>{escape(piece.original.domain)}</small>" if piece.original.domain else ""
        rows.append(f"<tr><th>{escape(piece.label)}{domain}</th>{''.join(cells)}</tr>")
    return table(["<th>piece</th>", *(f"<th class=number>{escape(name)}</th>" for name in names)], rows)


def document(title: str, body: str) -> str:
    """Returns a whole HTML page, readable on a small screen and in the dark, that needs nothing from elsewhere.

    Args:
      title: as plain text.
      body: HTML below the heading.
    """
    return _PAGE.format(title=escape(title), body=body)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --text: #1d2330; --quiet: #667; --line: #e4e6ec; --head: #b8bdca; --hover: #f6f7fa;
  --best: #e3f3e6; --ground: #fff; --link: #0b57d0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e4e6ec; --quiet: #9aa0b0; --line: #343a47; --head: #555d6e;
  --hover: #232833; --best: #1f4a2b; --ground: #161a21; --link: #8ab4f8; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem;
  color: var(--text); background: var(--ground); }}
a {{ color: var(--link); }}
h1 {{ margin-bottom: 0; }} h2 {{ margin: 2.2rem 0 .4rem; font-size: 1.25rem; }}
.facts {{ margin-top: .1rem; }} .facts, small, .width {{ color: var(--quiet); }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; margin: .6rem 0; }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }}
thead th {{ border-bottom: 2px solid var(--head); font-weight: 600; }}
th {{ text-align: left; font-weight: 500; }} td, th.number {{ text-align: right; }}
td {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
td.text, th.text {{ text-align: left; white-space: normal; }} thead th {{ white-space: nowrap; }}
tbody tr:hover {{ background: var(--hover); }}

.mean {{ padding-right: .2rem; }} .width {{ padding-left: .2rem; text-align: left; font-size: 85%; }}
.best {{ background: var(--best); }} .mean.best {{ font-weight: 600; }}
details {{ margin: .5rem 0; }} summary {{ cursor: pointer; }}
audio {{ width: 15rem; max-width: 100%; height: 2.2rem; display: block; }} td audio {{ margin-left: auto; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1.2rem; }} figure {{ margin: 0 0 .7rem; max-width: 34rem; }}
figure.broad {{ max-width: 60rem; }} img {{ max-width: 100%; background: #fff; border-radius: 4px; }}
figure img {{ width: 100%; }} figcaption {{ color: var(--quiet); font-size: 90%; }}
li {{ margin: .2rem 0; max-width: 60rem; }} p {{ margin: .4rem 0; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
