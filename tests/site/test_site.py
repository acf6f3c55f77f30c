"""The built site: no warning, no dead link, nothing from another host, small, and every reference complete."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

import gradtf_fl
from experiments.site.doctests import fenced
from gradtf_fl.cli.main import VERBS, cli
from gradtf_fl.config import documented_tables
from tests.site.conftest import NO_NETWORK

MOST_BYTES = 10_000_000
pytestmark = pytest.mark.alone

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Tag -> attribute that names what a browser loads for it."""


class Links(HTMLParser):
    """Of one page: anchors that it has, places that it links to, and assets that a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loaded = given.get(LOADED.get(tag, ""))
        if loaded and given.get("rel") != "canonical":
            self.assets.append(loaded)


def pages(site: Path) -> Iterator[tuple[Path, Links]]:
    """Each page of the site."""
    for path in sorted(site.rglob("*.html")):
        yield path, Links(path)


def outside(place: str) -> bool:
    """Whether a browser would ask another host for it."""
    return place.startswith(("http:", "https:", "//"))


def dead(site: Path) -> list[str]:
    """Every internal link or asset that leads nowhere."""
    known = {path: links.anchors for path, links in pages(site)}
    found = []
    for path, links in pages(site):
        for place in [*links.links, *links.assets]:
            name, _, anchor = unquote(place).partition("#")
            if re.match(r"[a-z]+:|//", place):
                continue
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in known and anchor not in known[target]):
                found.append(f"{path.relative_to(site)}: {place}")
    return found


def test_the_build_says_nothing(built: tuple[Path, str]) -> None:
    assert "WARNING" not in built[1]


def test_no_link_is_dead(site: Path) -> None:
    assert len(list(pages(site))) > 40
    assert [place for place in dead(site) if not place.startswith("404.html")] == []


def test_no_asset_is_another_hosts(site: Path) -> None:
    for path, links in pages(site):
        assert [place for place in links.assets if outside(place)] == [], path.name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", sheet.read_text()) == [], sheet.name


def test_the_site_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < MOST_BYTES


def test_a_dead_link_and_a_foreign_asset_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#two"></a><a href="c.html"></a><img src="https://x.org/i.png">')
    (tmp_path / "b.html").write_text('<h2 id="one"></h2><a href="a.html"></a><a href="mailto:a@b.org"></a>')
    assert dead(tmp_path) == ["a.html: b.html#two", "a.html: c.html"]
    assert [place for _, links in pages(tmp_path) for place in links.assets if outside(place)] == [
        "https://x.org/i.png"
    ]


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """A verb and those below it, each by its whole name."""
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, click.Context(child, info_name=name, parent=context))


def test_the_reference_has_every_option(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text()
    shown = re.sub(r"<[^>]+>", "", page)
    assert len(VERBS) > 15
    for path, command in commands(cli, click.Context(cli, info_name="gradtf")):
        if path == "gradtf":
            continue
        assert f'id="{path.replace(" ", "-")}"' in page, path
        for option in command.params:
            if isinstance(option, click.Option) and "--debug" not in option.opts and not option.hidden:
                assert option.opts[-1] in shown, f"{path} {option.opts[-1]}"


def test_the_reference_has_every_key(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text()
    for table, _, keys in documented_tables():
        part = page.partition(f'id="{table}"')[2].partition("<h3")[0]
        for key in keys:
            assert f"<code>{key}</code></td>" in part, f"{table}.{key}"
    rows = re.findall(
        r"<tr>\s*<td><code>(\w+)</code></td>\s*<td>.*?</td>\s*<td>.*?</td>\s*<td>(.*?)</td>", page, re.DOTALL
    )
    assert len(rows) > 150
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    pages_of = "".join(path.read_text() for path in (site / "reference" / "api").glob("*.html"))
    for name in gradtf_fl.__all__:
        assert re.search(rf'id="[\w.]+\.{name}"', pages_of), name


def test_examples_of_docstrings_stand_between_fences() -> None:
    assert fenced("Adds.\n\n>>> 1 + 1\n2\n\nArgs:\n    a: one.") == (
        "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nArgs:\n    a: one."
    )
    assert fenced("Adds >>> nothing.") == "Adds >>> nothing."


def test_the_network_is_refused_while_the_site_is_built() -> None:
    code = NO_NETWORK.replace(
        'runpy.run_module("mkdocs", run_name="__main__")', "socket.create_connection(('127.0.0.1', 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, "site"], capture_output=True, text=True)
    assert "asked for the network" in done.stderr
    assert socket.create_connection is not None
