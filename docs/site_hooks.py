"""Hooks of MkDocs: the pages at the root of the source tree become pages of the site, README.md its first one.

Notebooks become pages too, without their results.
"""

import glob
import json
import os
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
REPOSITORY_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages at the root, and notebooks, to those of `docs/`."""
    root = os.path.dirname(config.config_file_path)
    for source, page in ROOT_PAGES.items():
        with open(os.path.join(root, source), encoding="utf-8") as file:
            files.append(File.generated(config, page, content=file.read()))
    for source in glob.glob(os.path.join(root, "docs", "notebooks", "*.ipynb")):
        page = f"notebooks/{os.path.basename(source).removesuffix('.ipynb')}.md"
        files.append(File.generated(config, page, content=_notebook_page(source)))
    return files


def _notebook_page(path: str) -> str:
    """Returns a notebook as Markdown, with a link to the file."""
    with open(path, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    forms = {"markdown": "{}", "code": "```python\n{}\n```"}
    texts = [forms[cell["cell_type"]].format("".join(cell["source"])) for cell in cells]
    name = os.path.basename(path)
    return "\n\n".join([texts[0], f"[Download the notebook]({name})", *texts[1:]]) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Returns a page whose links from file to file of the source tree lead to pages of the site."""
    sources = {page: source for source, page in ROOT_PAGES.items()}
    path = page.file.src_uri
    folder = posixpath.dirname(sources[path] if path in sources else f"docs/{path}")

    def link(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        target = ROOT_PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return match[0]
        return match[1] + posixpath.relpath(target, posixpath.dirname(path) or ".") + match[3]

    return REPOSITORY_LINK.sub(link, markdown)
