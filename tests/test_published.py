"""A site with an address: its sitemap, canonical links and cards, from a small atlas."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import knowledge_fixture as base
from tools.site import build, cards

ROOT = Path(__file__).parents[1]
SITEMAP = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
ADDRESS = "https://example.org/atlas/"


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """A small atlas with the configuration of this one."""
    root = base.write(tmp_path / "atlas")
    for name in ("mkdocs.yml", "mkdocs.publish.yml", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"(?<= )tools/site/(docs|overrides|hook\.py)", rf"{ROOT}/tools/site/\1", text)
        text = text.replace("base_path: [.]", f"base_path: ['{ROOT}']")
        base.put(root, name, text)
    return root


def test_a_published_site_names_its_addresses(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CONFIG, "mkdocs.publish.yml")
    monkeypatch.setenv("SITE_URL", ADDRESS)
    site = build.build(atlas, site_dir=tmp_path / "site", run=False, progress=lambda _: None)
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")} - {"404.html"}
    listed = {one.text for one in ET.parse(site / "sitemap.xml").iter(f"{SITEMAP}loc")}
    assert listed == {f"{ADDRESS}{page}" for page in pages}
    for page in pages:
        html = (site / page).read_text(encoding="utf-8")
        (canonical,) = re.findall(r'<link rel="canonical" href="([^"]+)"', html)
        assert canonical in listed
        (picture,) = re.findall(r'<meta property="og:image" content="([^"]+)"', html)
        assert (site / picture.removeprefix(ADDRESS)).is_file()
        assert len(re.findall(r'<meta property="og:(?:title|description|url)" content="[^"]+"', html)) == 3
    entry = (site / "techniques" / "token-merging.html").read_text(encoding="utf-8")
    assert f'content="{ADDRESS}{cards.FOLDER}/token-merging.png"' in entry
    assert "<script" in entry
    assert '"provider": "mike"' in entry
