"""The console as people meet it: a real server, and a real browser that is driven."""

import base64
import io
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from reidserve.embed import encode_png
from tests.conftest import BIN, DIM, draw_crop, unit_rows
from tests.test_keys import add

playwright = pytest.importorskip("playwright.sync_api", reason="needs the [test] extra")
expect = playwright.expect
expect.set_options(timeout=30_000)

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium, which .ci/run installs")

ENTRY = "0001_c1s1_000000_00.png"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>&amp;\"'"
MANY = 1000


@dataclass
class Served:
    """A running server.

    Attributes:
        process: its own.
        url: where its console is.
        client: asks it beside the console.
    """

    process: "subprocess.Popen[str]"
    url: str
    client: httpx.Client

    def ask(self, path: str, body: dict | None = None) -> dict:
        answer = self.client.get(path) if body is None else self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ids(self, **question) -> list[str]:
        return [hit["entryId"] for hit in self.ask("/v1/search", {"gallery": "shop", **question})["hits"]]

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


def serve(model: Path, *galleries: Path, told: tuple[object, ...] = (), http: str = "127.0.0.1:0") -> Served:
    named = [part for gallery in galleries for part in ("--gallery", gallery)]
    here = ("--listen", "127.0.0.1:0", "--http", http, "--probe-period", "0", "--json")
    command = [BIN / "reid-serve", "--model", model, *named, *here, *told]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = f"http://{json.loads(process.stdout.readline())['http']}"
    return Served(process, url, httpx.Client(base_url=url, trust_env=False, timeout=30))


@pytest.fixture(scope="module")
def galleries(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("console")
    return [Path(shutil.copytree(gallery, folder / f"{name}.gallery")) for name in ("shop", "large")]


@pytest.fixture(scope="module")
def served(model: Path, galleries: list[Path]) -> Iterator[Served]:
    """A server of `shop`, as `gallery` is, with times, and of `large`, which has 1,000 entries more."""
    running = serve(model, *galleries, told=("--thumbnails",))
    rows = unit_rows(np.random.default_rng(7), MANY, DIM)
    for start in range(0, MANY, 250):
        entries = [
            {"entryId": f"row-{place:04}", "embedding": base64.b64encode(rows[place]).decode(), "camid": str(place % 4)}
            for place in range(start, start + 250)
        ]
        running.ask("/v1/galleries/large/entries", {"entries": entries})
    for day, name in ((1, ENTRY), (2, "0001_c2s1_000000_00.png")):
        said = {"entry": {"timestamp": f"2026-05-0{day}T12:00:00Z"}, "updateMask": "timestamp"}
        assert running.client.patch(f"/v1/galleries/shop/entries/{name}", json=said).status_code == 200
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium has no sandbox for root, as which CI runs.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """What a browser complains of.

    Attributes:
        expected: statuses that a test brings about.
        complaints: of scripts, of the page's policy and of what could not be loaded.
        asked: every address that was asked for.
    """

    expected: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def console(self, message) -> None:
        loading = message.text.startswith("Failed to load resource")
        if loading and (
            (message.location["url"].endswith("/thumbnail") and "404" in message.text) or self.bears(message.text)
        ):
            return
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location['url']})")

    def bears(self, text: str) -> bool:
        return any(status in text for status in self.expected)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def open_page(browser, served, seen):
    """Opens the console; what its browser complains of fails the test."""
    contexts = []

    def open_(at: Served = served, path: str = "", **told):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "timezone_id": "UTC", **told})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", seen.console)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.asked.append(request.url))
        page.goto(f"{at.url}/{path}")
        expect(page.locator("#gallery-name option").first).to_be_attached()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert seen.complaints == []
    assert [url for url in seen.asked if not re.match(r"(http://127\.0\.0\.1:|blob:|data:)", url)] == []


@pytest.fixture
def page(open_page):
    page = open_page()
    page.select_option("#gallery-name", "shop")
    return page


def dropped(page, event: str, *paths: Path):
    """Drop or paste files onto the page, as a person would: a browser's own way into files is its own."""
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    page.evaluate(
        """([event, files]) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                data.items.add(new File([bytes], name, {type: "image/png"}));
            }
            const made = event === "paste"
                ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
                : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
            document.body.dispatchEvent(made);
        }""",
        [event, files],
    )


def shown(page, ids: list[str], *, of: str = "#hits") -> None:
    """Wait until cards of these entries are shown, in this order."""
    page.wait_for_function(
        "([of, ids]) => JSON.stringify([...document.querySelectorAll(`${of} > li`)].map((li) => li.dataset.id))"
        " === JSON.stringify(ids) && !document.querySelector(of).hasAttribute('aria-busy')",
        arg=[of, ids],
    )


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def refusal(page) -> str:
    box = page.locator("#refusal")
    expect(box).to_be_visible()
    return box.inner_text()


# The page itself


def test_the_page_says_in_one_line_what_to_do_and_what_it_may_do(served, page):
    expect(page.locator("section[data-of=search] .lead")).to_have_text(
        "Drop, paste or choose a picture of one vehicle or person, and see who in the gallery is most like it."
    )
    for path in ("/", "/console/app.js", "/console/console.css", "/console/icon.svg"):
        answer = served.client.get(path)
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in served.client.get("/").text
    assert "style=" not in served.client.get("/").text


def test_nothing_in_the_scripts_takes_text_for_html():
    scripts = sorted((Path(__file__).parents[1] / "server/http/console").glob("*.js"))
    assert len(scripts) > 5
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "DOMParser",
            "http:",
            "https:",
        ):
            assert way not in text.replace("http://www.w3.org/2000/svg", ""), f"{script.name} has {way}"


# Searching


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_is_searched_for(served, page, crops, way):
    path = crops / ENTRY
    if way == "choose":
        page.set_input_files("#files", path)
    else:
        dropped(page, way, path)
    shown(page, served.ids(image=encoded(path)))
    expect(page.locator("#found-summary")).to_contain_text("The 10 most similar of 40 entries in shop, best first")
    expect(page.locator("#hits li").first.locator(".score strong")).to_have_text("1.000")


def test_the_query_is_shown_as_the_network_sees_it(page, crops, embedder):
    path = crops / ENTRY
    dropped(page, "drop", path)
    picture = page.locator("#query .pair figure").nth(1).locator("img")
    expect(picture).to_be_visible()
    source = picture.get_attribute("src")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    np.testing.assert_array_equal(found, embedder.prepare(path.read_bytes()))


def test_several_pictures_are_one_target(served, page, crops):
    paths = [crops / ENTRY, crops / "0001_c2s1_000000_00.png", crops / "0007_c1s1_000000_00.png"]
    dropped(page, "drop", *paths)
    shown(page, served.ids(track={"images": [encoded(path) for path in paths]}))
    expect(page.locator("#query .about")).to_contain_text("3 pictures of one target")
    expect(page.locator("#query .pair figure:nth-child(2) img")).to_have_count(3)


def test_a_hit_is_searched_by_and_the_way_back_leads_to_the_query_before(served, page, crops):
    path = crops / ENTRY
    dropped(page, "drop", path)
    first = served.ids(image=encoded(path))
    shown(page, first)
    page.locator("#hits .open").nth(3).click()
    shown(page, served.ids(entryId=first[3]))
    expect(page.locator("#query .about")).to_contain_text(first[3])
    page.go_back()
    shown(page, first)
    for name in ("Gallery", "Search"):
        page.get_by_role("link", name=name, exact=True).click()
    shown(page, first)
    for _ in range(3):
        page.go_back()
    expect(page.locator("#hits li")).to_have_count(0)
    expect(page.locator("#drop")).to_be_visible()


def test_the_keyboard_is_enough(served, page, crops):
    page.set_input_files("#files", crops / ENTRY)
    first = served.ids(image=encoded(crops / ENTRY))
    shown(page, first)
    page.locator("#hits .open").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    shown(page, served.ids(entryId=first[2]))


def test_options_say_what_may_be_found(served, page, crops):
    image = encoded(crops / ENTRY)
    dropped(page, "drop", crops / ENTRY)
    shown(page, served.ids(image=image))

    def say(label: str, text: str) -> None:
        entered = page.locator("section[data-of=search]").get_by_label(label, exact=True)
        entered.fill(text)
        entered.press("Tab")

    say("How many hits", "4")
    shown(page, served.ids(image=image, topK=4))
    say("Not from cameras", "1")
    shown(page, served.ids(image=image, topK=4, filter={"excludeCamids": ["1"]}))
    say("Not from cameras", "")
    say("Only from cameras", "1, 3")
    shown(page, served.ids(image=image, topK=4, filter={"camids": {"anyOf": ["1", "3"]}}))
    say("Only from cameras", "")
    say("Taken from", "2026-05-02T00:00:00")
    shown(page, ["0001_c2s1_000000_00.png"])
    expect(page.locator("#hits dd[title='2026-05-02T12:00:00Z']")).to_have_text("2026-05-02 12:00:00")
    say("Taken from", "")
    say("Taken before", "2026-05-02T00:00:00")
    shown(page, [ENTRY])
    say("Least score", "1")
    say("Taken before", "2025-05-02T00:00:00")
    shown(page, [])
    expect(page.locator("#found-summary")).to_contain_text("Nothing in shop may be found with these options.")


def test_hits_are_right_or_wrong_where_it_is_known_who_the_query_is(served, page, crops):
    dropped(page, "drop", crops / ENTRY)
    hits = served.ask("/v1/search", {"gallery": "shop", "image": encoded(crops / ENTRY)})["hits"]
    shown(page, [hit["entryId"] for hit in hits])
    expect(page.locator("#hits .mark")).to_have_count(0)
    page.get_by_label("Who it is").fill("0001")
    right = [hit["entryId"] for hit in hits if hit["pid"] == "0001"]
    assert right
    expect(page.locator("#hits .mark.right")).to_have_count(len(right))
    expect(page.locator("#hits .mark.wrong")).to_have_count(len(hits) - len(right))
    expect(page.locator("#found-summary")).to_contain_text(f"{len(right)} right, the first at rank 1")
    page.locator("#hits .open").first.click()
    expect(page.get_by_label("Who it is")).to_have_value("0001")


def test_selected_hits_are_said_to_be_the_same_or_different_and_the_entry_keeps_it(served, page, crops):
    page.goto(f"{served.url}/#gallery")
    page.locator(f"#entries li[data-id='{ENTRY}'] .open").click()
    ids = served.ids(entryId=ENTRY)
    shown(page, ids)
    for place in (0, 1):
        page.locator("#hits .select input").nth(place).check()
    expect(page.locator("#judging")).to_contain_text("2 selected")
    page.get_by_role("button", name="Same", exact=True).click()
    expect(page.locator("#hits .mark", has_text="said: same")).to_have_count(2)
    page.locator("#hits .select input").nth(1).check()
    page.get_by_role("button", name="Different", exact=True).click()
    expect(page.locator("#hits .mark", has_text="said: different")).to_have_count(1)

    def said(name: str) -> dict:
        return served.ask(f"/v1/galleries/shop/entries/{name}")["entry"]["attributes"]

    (attribute,) = said(ids[0])
    assert re.fullmatch(r"match_0001_c1s1_000000_00_png_[0-9a-f]{8}", attribute)
    assert said(ids[0]) == {attribute: {"text": "same"}}
    assert said(ids[1]) == {attribute: {"text": "different"}}
    page.goto(f"{served.url}/#gallery")
    page.reload()
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Attribute").fill(f"{attribute}=same")
    page.get_by_label("Attribute").press("Tab")
    shown(page, [ids[0]], of="#entries")


def test_what_was_said_can_be_taken_back_under_a_label_of_ones_own(served, page, crops):
    dropped(page, "drop", crops / "0009_c1s1_000000_00.png")
    first = page.locator("#hits li").first
    expect(first).to_have_attribute("data-id", "0009_c1s1_000000_00.png")
    first.locator(".select input").check()
    page.get_by_label("kept as attribute match_").fill("red van")
    page.get_by_role("button", name="Same", exact=True).click()
    expect(first.locator(".mark")).to_have_text("said: same")
    path = "/v1/galleries/shop/entries/0009_c1s1_000000_00.png"
    assert served.ask(path)["entry"]["attributes"] == {"match_red_van": {"text": "same"}}
    first.locator(".select input").check()
    page.get_by_role("button", name="Take back").click()
    expect(first.locator(".mark")).to_have_count(0)
    assert served.ask(path)["entry"]["attributes"] == {}


# What goes wrong


def test_what_is_no_picture_is_told_in_words_with_reason_and_request(page, seen, tmp_path):
    seen.expected = {"400"}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    dropped(page, "drop", tmp_path / "bad.png")
    said = refusal(page)
    assert "This is no picture that the server can read." in said
    assert "expected a JPEG, PNG, WEBP, BMP image" in said
    assert re.search(r"IMAGE_INVALID · request [0-9a-f]{32}", said)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#refusal")).to_be_hidden()


def test_a_server_that_is_gone_is_told_and_the_page_goes_on_when_another_is_there(
    model, galleries, open_page, seen, crops
):
    seen.expected = {"ERR_CONNECTION_REFUSED"}
    own = serve(model, galleries[0], told=("--read-only",))
    page = open_page(own)
    own.stop()
    dropped(page, "drop", crops / ENTRY)
    assert "The server does not answer. Is it still running?" in refusal(page)
    again = serve(model, galleries[0], told=("--read-only",), http=own.url.removeprefix("http://"))
    page.get_by_role("button", name="Try again").click()
    shown(page, again.ids(image=encoded(crops / ENTRY)))
    expect(page.locator("#refusal")).to_be_hidden()
    page.locator("#hits .select input").first.check()
    expect(page.get_by_role("button", name="Same", exact=True)).to_be_disabled()
    expect(page.locator("#judging")).to_contain_text("This server only reads the gallery.")
    page.close()
    again.stop()


def test_keys_are_asked_for_kept_for_the_tab_and_refused_in_words(
    model, galleries, browser, seen, open_page, crops, tmp_path
):
    seen.expected = {"401", "403", "429"}
    keys = tmp_path / "keys.json"
    token = add(keys, "cameras", scopes={"search": ("*",)}, images_per_second=0.01, burst=2.0)
    own = serve(model, galleries[0], told=("--read-only", "--keys", keys))
    context = browser.new_context()
    page = context.new_page()
    page.on("console", seen.console)
    page.goto(own.url)
    assert "This server wants an API key." in refusal(page)
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("reid_wrong")
    page.keyboard.press("Enter")
    assert "UNAUTHENTICATED · request" in refusal(page)
    page.locator("#key").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#gallery-name option")).to_have_text(["shop"])
    expect(page.locator("#refusal")).to_be_hidden()
    dropped(page, "drop", crops / ENTRY)
    expect(page.locator("#hits li")).to_have_count(10)
    expect(page.get_by_alt_text("The picture, resized")).to_be_visible()
    page.reload()
    expect(page.locator("#gallery-name option")).to_have_text(["shop"])
    expect(page.locator("#query .pair")).to_have_count(0)
    dropped(page, "drop", crops / ENTRY)
    said = refusal(page)
    assert "This key has asked for more than its rate. Try again in" in said
    assert "RATE_LIMITED" in said
    assert page.evaluate("localStorage.length") == 0
    context.close()
    own.stop()


# The gallery


def test_a_thousand_entries_are_turned_page_by_page(served, open_page):
    page = open_page(path="#gallery")
    page.select_option("#gallery-name", "large")
    listed = served.ask("/v1/galleries/large/entries?page_size=2000")["entries"]
    expected = [entry["entryId"] for entry in listed]
    assert len(expected) == 1040
    for start in range(0, 1040, 48):
        shown(page, expected[start : start + 48], of="#entries")
        if start + 48 < 1040:
            page.locator("#page-after").click()
    expect(page.locator("#page-after")).to_be_disabled()
    expect(page.locator("#browse-summary")).to_have_text("large: 1,040 entries; page 22, the last.")
    page.locator("#page-before").click()
    shown(page, expected[960:1008], of="#entries")
    page.get_by_text("Filter", exact=True).click()
    page.locator("#browse-filter").get_by_label("Only from cameras").fill("3")
    page.keyboard.press("Tab")
    third = [entry["entryId"] for entry in listed if entry.get("camid") == "3"]
    shown(page, third[:48], of="#entries")


def test_entries_are_added_and_deleted_when_people_are_sure(served, open_page, tmp_path):
    page = open_page(path="#gallery")
    page.select_option("#gallery-name", "shop")
    expect(page.locator("#browse-summary")).to_contain_text("shop: 40 entries")
    for name in ("left.png", "right.png"):
        Image.fromarray(draw_crop(77, 1, frame=len(name))).save(tmp_path / name)
    dropped(page, "drop", tmp_path / "left.png", tmp_path / "right.png")
    page.get_by_label("Id", exact=True).first.fill("vans/left 1.png")
    page.get_by_label("Identity (pid)").fill("0077")
    page.get_by_label("Camera", exact=True).fill("door 3")
    page.get_by_label("Taken at").fill("2026-06-01T08:00:00")
    page.get_by_role("button", name="Add 2 entries").click()
    expect(page.locator("#browse-summary")).to_contain_text("shop: 42 entries")
    entry = served.ask("/v1/galleries/shop/entries/vans%2Fleft%201.png")["entry"]
    assert (entry["pid"], entry["camid"], entry["timestamp"]) == ("0077", "door 3", "2026-06-01T08:00:00Z")
    assert served.ask("/v1/galleries/shop/entries/right.png")["entry"]["pid"] == "0077"

    for name in ("vans/left 1.png", "right.png"):
        page.locator(f"#entries li[data-id='{name}'] .select input").check()
        expect(page.locator(f"#entries li[data-id='{name}'] img")).to_be_visible()
    expect(page.locator(f"#entries li[data-id='{ENTRY}'] .none")).to_have_text(ENTRY)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#sure-text")).to_have_text("Delete 2 entries from shop? This cannot be undone.")
    page.keyboard.press("Escape")
    expect(page.locator("#sure")).to_be_hidden()
    assert served.ask("/v1/galleries/shop")["gallery"]["entries"] == "42"
    page.locator("#deleting button").click()
    page.locator("#sure-yes").click()
    expect(page.locator("#browse-summary")).to_contain_text("shop: 40 entries")
    assert served.client.get("/v1/galleries/shop/entries/right.png").status_code == 404


def test_what_a_gallery_says_stays_text(served, open_page, crops):
    entry = {
        "entryId": HOSTILE,
        "image": encoded(crops / "0012_c1s1_000000_00.png"),
        "pid": HOSTILE,
        "camid": HOSTILE,
        "source": HOSTILE,
        "attributes": {"note": {"text": HOSTILE}},
    }
    served.ask("/v1/galleries/shop/entries", {"entries": [entry]})
    page = open_page()
    page.select_option("#gallery-name", "shop")
    dropped(page, "drop", crops / "0012_c1s1_000000_00.png")
    card = page.locator("#hits li").filter(has_text="onerror").first
    for term in ("id", "pid", "camera", "note"):
        fact = card.locator("dt", has_text=re.compile(f"^{term}$")).locator("xpath=following-sibling::dd[1]")
        expect(fact).to_have_text(HOSTILE)
    card.locator(".open").click()
    expect(page.locator("#query .about span")).to_have_text(HOSTILE)
    page.locator("#hits .select input").first.check()
    page.get_by_role("link", name="Gallery").click()
    page.locator("#entries li").filter(has_text="onerror").locator(".select input").check()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#sure-text")).to_have_text(f"Delete entry {HOSTILE} from shop? This cannot be undone.")
    page.locator("#sure-yes").click()
    expect(page.locator("#browse-summary")).to_contain_text("shop: 40 entries")
    assert page.title() == "reidserve"
    assert page.locator("img[onerror], main script").count() == 0


# The live page, and small and dark screens


def test_the_live_page_shows_what_the_server_does(served, page, crops):
    page.get_by_role("link", name="Live").click()
    calls = page.locator(".figure", has_text="Calls a second").locator("strong")
    expect(calls).to_be_visible()
    for _ in range(100):
        served.ids(image=encoded(crops / ENTRY))
        if float(calls.inner_text()) > 0:
            break
        page.wait_for_timeout(200)
    assert float(calls.inner_text()) > 0
    expect(page.locator(".figure", has_text="Images a batch").locator("strong")).to_have_text(re.compile(r"^[1-9]"))
    expect(page.locator("#served tbody tr").filter(has_text="shop")).to_contain_text("40")
    assert len(page.locator(".figure polyline").first.get_attribute("points").split(" ")) >= 1


def test_nothing_is_wider_than_a_phone(served, open_page, crops):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.select_option("#gallery-name", "shop")

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

    fits()
    page.set_input_files("#files", crops / ENTRY)
    expect(page.locator("#hits li")).to_have_count(10)
    page.locator("#hits .select input").first.check()
    fits()
    for name, part in (("Gallery", "#entries li"), ("Live", "#served tbody tr")):
        page.get_by_role("link", name=name).click()
        expect(page.locator(part).first).to_be_visible()
        fits()


def test_the_dark_is_dark(open_page):
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme, reduced_motion="reduce")
        colour = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        grounds[scheme] = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in colour]
        assert page.evaluate("getComputedStyle(document.querySelector('nav a')).transitionDuration") == "0s"
    assert grounds["light"][0] > 700 > 300 > grounds["light"][1]
    assert grounds["dark"][0] < 150 < 600 < grounds["dark"][1]


def test_a_preview_has_the_pixels_that_are_embedded(served, crops, embedder):
    data = (crops / ENTRY).read_bytes()
    png = base64.b64decode(served.ask("/v1/preview", {"image": base64.b64encode(data).decode()})["png"])
    assert png == encode_png(embedder.prepare(data))
