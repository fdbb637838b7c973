"""The one hook between the pages and mkdocs: it hands over the pages, the data and the search, and nothing else.

How notebooks are taken is said by the environment variable ATLAS_NOTEBOOKS: `run` (the default) executes those that
changed, `cached` leaves them out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page as MkDocsPage

if (_root := str(Path(__file__).parents[2])) not in sys.path:  # mkdocs loads this file without its package
    sys.path.insert(0, _root)

from tools.site import cards, search
from tools.site.build import collect
from tools.site.model import Atlas, Page
from tools.site.pages import navigation

_PAGES: list[Page] = []
_FILES: dict[str, str] = {}
_ATLAS: list[Atlas] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Generate the pages and their navigation."""
    run = os.environ.get("ATLAS_NOTEBOOKS", "run") == "run"
    _PAGES[:], files, atlas = collect(Path(config.config_file_path).parent, run=run)
    _FILES.update(files)
    _ATLAS[:] = [atlas]
    config.nav = navigation(_PAGES)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, whose "edit" leads to the file that a page comes from, and the data."""
    for page in _PAGES:
        if written := files.get_file_from_path(page.path):  # the guide that the page was filled in from
            files.remove(written)
        file = File.generated(config, page.path, content=page.markdown)
        file.edit_uri = page.source
        files.append(file)
    for path, text in _FILES.items():
        files.append(File.generated(config, path, content=text.encode()))
    return files


def on_page_markdown(markdown: str, page: MkDocsPage, config: MkDocsConfig, files: Files) -> None:
    """Keep the page out of the theme's index, in whose place ours comes."""
    page.meta["search"] = {"exclude": True}


def on_post_build(config: MkDocsConfig) -> None:
    """Put our search and its index into the built site, and for a site with an address the cards of its links.

    A site without one has no map of its addresses.
    """
    site = Path(config.site_dir)
    search.install(site, search.index(_ATLAS[0]))
    if config.site_url:
        cards.write(_ATLAS[0], site)
    else:
        for name in ("sitemap.xml", "sitemap.xml.gz"):
            (site / name).unlink(missing_ok=True)
