"""MkDocs calls this file (``hooks`` in mkdocs.yml): it adds pages and adapts what GitHub shows differently.

The pages in docs/ and README.md are written for a repository host. Here their links to files outside docs/ lead to the
page that the site has of them, or become plain text; words after a fence's kind (``console exit=2``) are taken off.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from experiments.site.api_reference import api_pages
from experiments.site.cli_reference import cli_page
from experiments.site.config_reference import config_page

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/results/README.md": "results/tables.md",
}
"""File of the repository -> the site's page of it."""
RESULTS = "experiments/results"
STORED = (".png", ".json", ".txt")
"""Endings of the files there that pages link to."""
LINK = re.compile(r"(?<!`)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r'(<img [^>]*src=")(docs/[^"]+)(")')
BLOCK = re.compile(r"^```([a-z]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"rooms": "text", "output": "text", "sh": "bash", "": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the repository's own pages and the figures of the results."""
    made = {"reference/cli.md": cli_page(), "reference/configuration.md": config_page(), **api_pages()}
    made |= {page: (REPOSITORY / source).read_text(encoding="utf-8") for source, page in COPIED.items()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for stored in sorted((REPOSITORY / RESULTS).iterdir()):
        if stored.suffix in STORED:
            files.append(File.generated(config, f"results/{stored.name}", abs_src_path=str(stored)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """The page as the site shows it."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]
    text = BLOCK.sub(lambda found: f"```{KINDS.get(found[1], found[1])}\n{found[2]}```", markdown)
    text = IMAGE.sub(lambda found: found[1] + _relative(found[2].removeprefix("docs/"), uri) + found[3], text)
    pieces = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(piece if piece.startswith("```") else _linked(piece, uri, files) for piece in pieces)


def on_post_build(config: MkDocsConfig) -> None:
    """Take away what the theme brings along and no page uses: search in other languages."""
    shutil.rmtree(Path(config["site_dir"]) / "assets" / "javascripts" / "lunr", ignore_errors=True)


def source_of(uri: str) -> str:
    """Where in the repository the page ``uri`` comes from."""
    return next((source for source, page in COPIED.items() if page == uri), f"docs/{uri}")


def _linked(text: str, uri: str, files: Files) -> str:
    return LINK.sub(lambda found: _link(found, uri, files), text)


def _link(found: re.Match[str], uri: str, files: Files) -> str:
    """A link as the site has it: to a page of the site, or the bare words where the site has no such page."""
    image, words, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found[0]
    path, _, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(uri)), path))
    home = _page_of(place)
    if home is None or files.get_file_from_path(home) is None:
        return found[0] if _generated(uri) else words
    return f"{image}[{words}]({_relative(home, uri)}{'#' + anchor if anchor else ''})"


def _generated(uri: str) -> bool:
    return uri.startswith("reference/")


def _page_of(place: str) -> str | None:
    """The site's file of a file of the repository."""
    if place in COPIED:
        return COPIED[place]
    if place.startswith(f"{RESULTS}/") and place.endswith(STORED):
        return f"results/{posixpath.basename(place)}"
    return place.removeprefix("docs/") if place.startswith("docs/") else None


def _relative(target: str, uri: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(uri) or ".")
