"""The pages in a real browser: live while a round runs, on a phone, in the dark, by keyboard, with hostile names."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clients.adapters.kept import current, is_pinned
from gradtf_fl.dashboard import Sources
from gradtf_fl.flower import RoundEvent
from strategies import run_server
from strategies.server.observation import Observer, tell_all
from tests.dashboard.browser import Browser, Tab, needs_browser
from tests.dashboard.conftest import HOSTILE, charge, running
from tests.deployment.test_server_status import NAMES, enrol
from tests.strategies.federation_kit import Kit

pytestmark = [needs_browser, pytest.mark.long]
PHONE = 390
PAGES = ("server", "run", "budgets", "adapters", "log")
CARD = "---\nbase_model: x\n---\n# An adapter\n" + "a line of a model card that is long enough to be wrapped " * 4


@pytest.fixture
def everything(deployed: Kit, organization: Path, simulated: Path, ledger: Path) -> Iterator[str]:
    """The link of a dashboard with every page."""
    (organization / "rounds" / "2" / "llm_adapter" / "README.md").write_text(CARD)
    sources = Sources(deployed.plan.out, organization, (ledger,), simulated)
    with running(sources) as server:
        yield server.url


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A page that must end without a complaint, and without a request to anybody but dashboards."""
    with browser.tab() as tab:
        yield tab
        assert [line for line in tab.complaints if "ERR_CONNECTION_REFUSED" not in line] == []  # it had ended by then
        assert all(host.startswith("127.0.0.1:") for host in tab.hosts)


def visit(tab: Tab, link: str, page: str) -> None:
    """One page of a dashboard that may have been opened before, with its epsilons computed."""
    if link not in tab.opened:
        tab.open(link)
    tab.open(f"{link.partition('/open')[0]}/{page}")
    tab.live()
    tab.wait("!document.body.innerText.includes('Computing the epsilons')")


def test_the_link_opens_once_and_its_token_leaves_the_address(browser: Browser, tab: Tab, everything: str) -> None:
    tab.open(everything)
    assert tab.js("location.pathname + location.search") == "/server"
    assert tab.js("document.cookie") == ""  # out of the page's reach
    with browser.tab() as other:
        other.open(everything)
        assert "The link works once" in other.text()
        assert "Organizations" not in other.text()


def test_two_dashboards_in_one_browser_stay_open(tab: Tab, everything: str, ledger: Path) -> None:
    with running(Sources(ledgers=(ledger,))) as second:
        visit(tab, everything, "server")
        visit(tab, second.url, "budgets")
        visit(tab, everything, "server")
        assert "completed" in tab.text()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_scrolls_sideways_on_a_phone(tab: Tab, everything: str, page: str) -> None:
    tab.resize(PHONE, 800)
    visit(tab, everything, page)
    assert tab.js("document.documentElement.scrollWidth") <= PHONE
    tab.js("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert tab.js("document.documentElement.scrollWidth") <= PHONE
    outside = tab.js(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .hidden, pre, thead')"
        f" && e.getBoundingClientRect().right > {PHONE}).map((e) => e.outerHTML.slice(0, 99))"
    )
    assert outside == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_fit_for_a_screen_reader(tab: Tab, everything: str, page: str) -> None:
    visit(tab, everything, page)
    assert tab.js("document.documentElement.lang") == "en"
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert tab.js(f"document.querySelectorAll('body > {landmark}, body > header > {landmark}').length") == 1
    assert tab.js("document.querySelectorAll('h1').length") == 1
    assert tab.js("document.querySelector('nav [aria-current=page]').textContent") == tab.js(
        "document.querySelector('h1').textContent"
    )
    unnamed = "[...document.querySelectorAll({!r})].filter((e) => {}).map((e) => e.outerHTML.slice(0, 99))"
    assert tab.js(unnamed.format("table", "!e.caption?.textContent.trim() && !e.closest('.scroll[aria-label]')")) == []
    assert tab.js(unnamed.format("thead th", "!e.hasAttribute('scope') && !e.querySelector('.hidden')")) == []
    assert tab.js(unnamed.format("svg", "!e.hasAttribute('aria-hidden') && !e.getAttribute('aria-label')")) == []
    assert tab.js(unnamed.format("a, button, summary", "!e.textContent.trim()")) == []
    doubled = (
        "(() => { const ids = [...document.querySelectorAll('[id]')].map((e) => e.id); "
        "return ids.filter((id, n) => ids.indexOf(id) !== n); })()"
    )
    assert tab.js(doubled) == []
    tab.wait("document.getElementById('spoken').getAttribute('role') === 'status'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_every_text_stands_out_from_what_is_behind_it(tab: Tab, everything: str, page: str, scheme: str) -> None:
    """WCAG AA: 4.5 to 1, and 3 to 1 for large text; measured on what the browser computed."""
    tab.prefer(scheme)
    visit(tab, everything, page)
    tab.js("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert tab.js("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    faint = tab.js(CONTRAST)
    assert faint == []
    (red, green, blue) = tab.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(red, green, blue) < 60) == (scheme == "dark")


CONTRAST = r"""
(() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const behind = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest(".hidden, script, title, [hidden]")) continue;
    const style = getComputedStyle(e), below = behind(e);
    const ink = over(parse(e.namespaceURI.endsWith("svg") ? style.fill : style.color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 90)}`);
  }
  return found;
})()
"""


def test_everything_can_be_reached_and_seen_by_keyboard(tab: Tab, everything: str) -> None:
    visit(tab, everything, "adapters")
    tab.press("Tab")
    assert tab.js("document.activeElement.textContent") == "Skip to the content"
    assert tab.js("document.activeElement.getBoundingClientRect().top") >= 0
    tab.press("Enter")
    assert tab.js("document.activeElement.id") == "main"
    seen = []
    for _ in range(30):
        tab.press("Tab")
        seen.append(tab.js("document.activeElement.id || document.activeElement.tagName"))
        if tab.js("document.activeElement !== document.body"):
            assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if seen[-1] == "use-1":
            break
    assert seen[-1] == "use-1"
    time.sleep(1.5)  # an update or two, which must not take the focus away
    assert tab.js("document.activeElement.id") == "use-1"


def test_roll_back_by_keyboard_asks_first(tab: Tab, everything: str, organization: Path) -> None:
    visit(tab, everything, "adapters")
    tab.js("document.getElementById('use-1').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('h1').textContent.includes('Use the adapter of round 1?')")
    assert current(organization).round == 2
    tab.js("document.querySelector('button').focus()")
    tab.press("Enter")
    tab.wait("document.body.innerText.includes('pinned')")
    assert tab.js("location.pathname") == "/adapters"
    assert (current(organization).round, is_pinned(organization)) == (1, True)
    tab.js("document.getElementById('follow').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('h1').textContent.includes('newest')")
    tab.js("document.querySelector('button').focus()")
    tab.press("Enter")
    tab.wait("location.pathname === '/adapters' && !document.body.innerText.includes('pinned')")
    assert not is_pinned(organization)


def test_a_hostile_name_is_text_on_every_page(tab: Tab, everything: str) -> None:
    visit(tab, everything, "budgets")
    assert tab.js("document.title") == "Budgets · gradtf dashboard"
    assert tab.js("document.querySelectorAll('main img, main script').length") == 0
    assert "<script>alert(1)</script>\\u202e\\x1b[2J" in tab.text()
    assert HOSTILE not in tab.text()
    tab.send("Page.reload")
    tab.live()  # and by the update, which is put in as HTML


def test_the_policy_stops_a_script_that_got_in_nonetheless(browser: Browser, everything: str) -> None:
    with browser.tab() as tab:
        visit(tab, everything, "server")
        tab.js("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x onerror=\"evil = 1\">')")
        tab.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'evil = 1'}))")
        tab.js("fetch('http://192.0.2.1/').catch(() => 0)")
        time.sleep(0.5)
        assert tab.js("typeof evil") == "undefined"
        assert any("Content Security Policy" in line for line in tab.complaints)


def test_a_page_follows_a_run_from_its_start_to_its_end(tab: Tab, make_kit: Callable[..., Kit]) -> None:
    """A real run of three rounds, slowed down so that every stage can be seen; the page is never loaded again."""
    kit = make_kit("server", organizations=4, rounds=3, budget=50.0)
    enrol(kit)
    with running(Sources(server=kit.plan.out)) as server:
        visit(tab, server.url, "server")
        assert "not started" in tab.text()
        tab.js(WATCH)
        thread = threading.Thread(target=slowly, args=(kit,))
        thread.start()
        tab.wait("document.getElementById('server-state').innerText.includes('3 of 3 rounds done')", 120)
        tab.wait("document.getElementById('server-state').innerText.includes('completed')", 60)
        thread.join()
        states, spoken = tab.js("window.states"), tab.js("window.spoken")
    told = "\n".join(states)
    for said in ("running", "0 of 3 rounds done", "1 of 3 rounds done", "2 of 3 rounds done", "at most", "answered"):
        assert said in told, said
    assert len({match for match in re.findall(r"round \d of 3: ([a-z ]+)", told)}) >= 3
    assert any("running, round 2 of 3" in line for line in spoken)
    assert all(name in tab.text() for name in NAMES)
    assert len(spoken) < len(states)  # seconds are not read out


WATCH = """
window.states = []; window.spoken = []; window.loaded = true;
new MutationObserver(() => states.push(document.getElementById('server-state').innerText))
  .observe(document.getElementById('server-state'), {childList: true});
new MutationObserver(() => spoken.push(document.getElementById('spoken').textContent))
  .observe(document.getElementById('spoken'), {childList: true});
"""


def slowly(kit: Kit) -> None:
    """Play the kit's rounds, with a pause at each stage."""

    def pause(event: RoundEvent) -> None:
        if event.kind in ("stage", "reply", "generated"):
            time.sleep(0.35)

    with Observer(kit.plan) as observer:
        run_server(kit.grid(), kit.plan, tell_all(observer, pause), kit.generator)


def test_what_a_person_opened_stays_open_when_a_charge_comes(tab: Tab, ledger: Path, key: Ed25519PrivateKey) -> None:
    with running(Sources(ledgers=(ledger,))) as server:
        visit(tab, server.url, "budgets")
        tab.wait("document.body.innerText.includes('2 charges')")
        tab.js("document.getElementById('charges-1').open = true")
        tab.js("document.querySelector('#charges-1 summary').focus()")
        charge(ledger, key, 3)
        tab.wait("document.body.innerText.includes('3 charges')")
        assert tab.js("document.getElementById('charges-1').open")
        assert tab.js("document.querySelectorAll('#charges-1 tbody tr').length") == 3
        assert tab.js("document.activeElement.textContent") == "3 charges"


def test_marked_text_stays_until_it_is_let_go(tab: Tab, ledger: Path, key: Ed25519PrivateKey) -> None:
    with running(Sources(ledgers=(ledger,))) as server:
        visit(tab, server.url, "budgets")
        tab.wait("document.body.innerText.includes('2 charges')")
        tab.js("getSelection().selectAllChildren(document.querySelector('dl'))")
        charge(ledger, key, 3)
        time.sleep(4)
        assert "2 charges" in tab.text()
        tab.js("getSelection().removeAllRanges()")
        tab.wait("document.body.innerText.includes('3 charges')")


def test_a_dashboard_that_ended_is_said_on_its_page(browser: Browser, ledger: Path) -> None:
    with browser.tab() as tab:
        with running(Sources(ledgers=(ledger,))) as server:
            visit(tab, server.url, "budgets")
        tab.wait("document.getElementById('connection').textContent.startsWith('not live')")
