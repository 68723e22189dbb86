"""The report site in a real browser: what it shows, asks for, and how it can be used."""

import csv
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import sweeps
from browser import browser, find_browser

from diffusionblocks.claims import VERDICTS
from diffusionblocks.cli import main
from diffusionblocks.ledger import load_ledger

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "workflow/config/claims.yaml"
PUBLISHED = ROOT / "workflow/config/published.csv"
TAB, ENTER = ("Tab", 9), ("Enter", 13)

#: Every text on the page whose colour is too near to what lies behind it (WCAG 2.2, AA).
TOO_FAINT = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, s = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || !e.getClientRects().length) continue;
    seen += 1;
    const front = light(parse(e.closest('svg') ? s.fill : s.color)), back = light(behind(e));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    const size = parseFloat(s.fontSize), bold = s.fontWeight >= 700;
    const needed = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
    if (ratio < needed) faint.push(`${walk.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return [seen, faint];
})()"""
PICTURES = """Promise.all([...document.images].map(i => i.decode().then(
  () => [i.src, i.naturalWidth * i.naturalHeight, i.getClientRects().length, !!i.alt],
  () => [i.src, 0, 0, false])))"""
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
CLAIMS = """[...document.querySelectorAll('[data-claim]')].map(r => [r.dataset.claim,
  r.querySelector('[data-verdict]').textContent.replace(/^\\S+ /, ''),
  r.querySelector('[data-effect]').textContent, r.querySelector('[data-paper]').textContent])"""
#: Everything that the keyboard must reach, and what Tab has reached.
REACHABLE = """[...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
  .filter(e => e.checkVisibility()).length"""


@pytest.fixture(scope="session")
def chromium():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium to show the site in; install the package chromium")
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a simulated sweep with its claims and its site, made by the command line."""
    root = tmp_path_factory.mktemp("a sweep")
    file, _, results = sweeps.write_sweep(root)
    names = {claim.figure for claim in load_ledger(LEDGER).claims if claim.figure}
    sweeps.draw_figures(results, sorted(names))
    claims = ["--ledger", str(LEDGER), "--published", str(PUBLISHED)]
    folder = ["--output", str(results / "tables")]
    assert main(["claims", "--tables", str(results / "tables"), *claims, *folder]) == 0
    site = ["--results", str(results), "--output", str(results / "report")]
    assert main(["site", "--preset", str(file), *site]) == 0
    return results


@pytest.fixture(scope="module")
def site(results):
    return results / "report"


@pytest.fixture(scope="module")
def page(chromium):
    with browser(chromium) as page:
        yield page


@pytest.fixture
def index(page, site):
    """The first page on a wide screen, freshly loaded."""
    page.events.clear()
    page.screen(1280)
    page.open((site / "index.html").as_uri())
    return page


def pages(site):
    """One page of every kind."""
    return [site / "index.html", site / "method.html", sorted((site / "runs").glob("*.html"))[-1]]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_verdict_table_is_the_csv(index, results):
    shown = {row[0]: row[1:] for row in index.run(CLAIMS)}
    written = table(results / "tables/claims.csv")
    tested = [row["claim"] for row in written if row["verdict"] != "not tested"]
    assert list(shown)[: len(tested)] == tested, "what was tested comes first"
    assert set(shown) == {row["claim"] for row in written}
    for row in written:
        verdict, effect, paper = shown[row["claim"]]
        assert verdict == row["verdict"]
        assert (effect == "not measured") == (row["effect"] == "")
        assert (paper == "no number") == (row["published_effect"] == "")
        if row["effect"] and row["unit"] == "relative change" and row["expected_ratio"] == "1.0":
            told = float(effect.removesuffix(" %").replace("−", "-"))
            assert told == pytest.approx(100 * float(row["effect"]), abs=0.051)
    counts = index.run("[...document.querySelectorAll('.counts .badge')].map(e => e.textContent)")
    found = [sum(row["verdict"] == verdict for row in written) for verdict in VERDICTS]
    assert [int(text.split()[1]) for text in counts] == found


def test_a_verdict_is_in_sight_at_once(index):
    top = "document.querySelector('[data-verdict]').getBoundingClientRect().top"
    assert index.run(top) < 600


def test_no_page_complains_or_asks_for_anything_elsewhere(page, site):
    for path in pages(site):
        page.events.clear()
        page.screen(1280)
        page.open(path.as_uri())
        page.run(OPEN_ALL)
        pictures = page.run(PICTURES)
        assert all(area > 0 and boxes and alt for _, area, boxes, alt in pictures), pictures
        assert page.faults() == []
        asked = page.requests()
        assert asked and all(url.startswith(("file:", "data:")) for url in asked), asked


def test_every_claim_with_numbers_opens_to_its_figure(index, results):
    index.run(OPEN_ALL)
    shown = index.run("document.querySelectorAll('details figure img').length")
    drawn = [r for r in table(results / "tables/claims.csv") if r["n_seeds"] != "0" and r["figure"]]
    assert shown == len(drawn) > 5
    commands = index.run("[...document.querySelectorAll('details pre')].map(e => e.textContent)")
    assert all("tables/claims.csv" in c and "--cores all --config preset=" in c for c in commands)


class Links(HTMLParser):
    """Addresses that a page points to, and the names it can be pointed at."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.targets += [named[k] for k in ("href", "src") if named.get(k)]
        self.ids |= {named["id"]} if "id" in named else set()


def test_links_resolve(site):
    files = [*site.glob("*.html"), *site.glob("runs/*.html")]
    parsed = {path.resolve(): Links(path) for path in files}
    assert len(files) > 30
    for path, links in parsed.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme == "data":
                continue
            assert not url.scheme and not url.netloc, target
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert file.is_file() and file.is_relative_to(site.resolve()), f"{path}: {target}"
            if url.fragment:
                assert url.fragment in parsed[file].ids, f"{path}: {target}"


@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_their_screen(page, site, width):
    for path in pages(site):
        page.screen(width)
        page.open(path.as_uri())
        page.run(OPEN_ALL)
        assert page.run("document.documentElement.scrollWidth") <= width
        narrow = (
            "[...document.querySelectorAll('.data th, .data td')].filter(e => e.textContent.length"
        )
        assert page.run(f"{narrow} > 3 && e.offsetWidth < 40).length") == 0, "words fall apart"
        small = page.run(
            "[...document.querySelectorAll('summary, nav a')].map(e => "
            "e.getBoundingClientRect().height)"
        )
        assert min(small) >= 24  # WCAG 2.2, target size


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(page, site, dark):
    for path in pages(site):
        page.screen(1280, dark=dark)
        page.open(path.as_uri())
        page.run(OPEN_ALL)
        seen, faint = page.run(TOO_FAINT)
        assert seen > 30 and faint == []


def test_themes_differ(page, site):
    colours = set()
    for dark in (False, True):
        page.screen(1280, dark=dark)
        page.open((site / "index.html").as_uri())
        colours.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_the_contrast_check_can_fail(index):
    index.run("document.querySelector('h1').style.color = '#999'")
    assert index.run(TOO_FAINT)[1]


def test_the_keyboard_reaches_everything_and_opens_a_claim(index):
    index.run(
        "window.reached = new Set();"
        "document.addEventListener('focusin', event => reached.add(event.target))"
    )
    wanted = index.run(REACHABLE)
    for _ in range(wanted):
        index.press(*TAB)
    assert index.run("reached.size") == wanted
    index.run("document.querySelector('summary').focus()")
    index.press(*ENTER)
    assert index.run("document.querySelector('details').open")


def test_names_are_shown_not_interpreted(index):
    text = index.run("document.body.textContent")
    assert "simulated <results> & nothing else" in text


def test_a_run_page_tells_what_was_run(page, site, results):
    name = "independent-B3-equal_mass-overlap0-s1"
    page.screen(1280)
    page.open((site / f"runs/{name}.html").as_uri())
    text = page.run("document.body.innerText")
    assert f"runs/{name}/scores.json" in text and "--part block2" in text
    assert "training.learning_rate" in text and "simulated" in text
    assert page.run("document.querySelectorAll('svg.chart polyline').length") == 2 * 3
    fid = next(
        float(row["value"]) for row in table(results / "tables/scores.csv") if row["run"] == name
    )
    assert f"{fid:.4g}" in text


def test_what_a_former_sweep_left_is_gone(results, site):
    stale = site / "runs/stale.html"
    stale.write_text("old")
    file = results.parent.parent / "simulated.yaml"
    where = ["--results", str(results), "--output", str(site)]
    assert main(["site", "--preset", str(file), *where]) == 0
    assert not stale.exists()


def test_a_missing_table_is_one_line(tmp_path, capsys):
    file, _, results = sweeps.write_sweep(tmp_path)
    where = ["--results", str(results), "--output", str(tmp_path / "report")]
    assert main(["site", "--preset", str(file), *where]) == 2
    assert "claims.csv does not exist" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
