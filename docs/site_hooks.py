"""Hooks of MkDocs: the pages at the root of the source tree become pages of the site, README.md its first one."""

import os
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
REPOSITORY_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages at the root to those of `docs/`."""
    root = os.path.dirname(config.config_file_path)
    for source, page in ROOT_PAGES.items():
        with open(os.path.join(root, source), encoding="utf-8") as file:
            files.append(File.generated(config, page, content=file.read()))
    return files


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
