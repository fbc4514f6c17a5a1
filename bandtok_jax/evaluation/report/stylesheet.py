"""The stylesheet of the HTML pages, for small screens and dark mode as well."""

STYLESHEET = """
:root { color-scheme: light dark; --text: #1d2330; --quiet: #667; --line: #e4e6ec; --head: #b8bdca; --hover: #f6f7fa;
  --best: #e3f3e6; --ground: #fff; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ec; --quiet: #9aa0b0; --line: #343a47; --head: #555d6e;
  --hover: #232833; --best: #1f4a2b; --ground: #161a21; --link: #8ab4f8; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem;
  color: var(--text); background: var(--ground); }
a { color: var(--link); }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; }
.summary { margin-top: .1rem; } .summary, small, .width { color: var(--quiet); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; }
td, th { padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom: 2px solid var(--head); font-weight: 600; white-space: nowrap; }
th { text-align: left; font-weight: 500; } td, th.number { text-align: right; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text, th.text { text-align: left; white-space: normal; }
tbody tr:hover { background: var(--hover); }
.mean { padding-right: .2rem; } .width { padding-left: .2rem; text-align: left; font-size: 85%; }
.best { background: var(--best); } .mean.best { font-weight: 600; }
details { margin: .5rem 0; } summary { cursor: pointer; }
audio { width: 15rem; max-width: 100%; height: 2.2rem; display: block; } td audio { margin-left: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: 0 0 .7rem; max-width: 34rem; }
figure.broad { max-width: 60rem; } img { max-width: 100%; background: #fff; border-radius: 4px; }
figure img { width: 100%; } figcaption { color: var(--quiet); font-size: 90%; }
li { margin: .2rem 0; max-width: 60rem; } p { margin: .4rem 0; }
"""
