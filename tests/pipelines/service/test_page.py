"""The page at `/`, in a browser: what a person sees of a real service, with pointer and with keyboard."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, FileChooser, FilePayload, Page, Route, expect, sync_playwright

from pipelines.cli import main
from pipelines.palette import palette
from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import build_house
from pipelines.service.security import Tokens
from tests.pipelines.conftest import CLASSES, HEIGHT, STORED, WIDTH, Chain
from tests.pipelines.service.conftest import process

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in chromium, which is not installed"),
]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: opens the page; keywords: url of another service, troubles that may stand in the console, and a context's settings
Visit = Callable[..., Page]
TOKEN = "a-token-of-this-test"
NOISE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- service and browser


@pytest.fixture(scope="module")
def url(finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the whole chain, with a network that was trained until its maps have several labels."""
    shutil.copytree(finished.home, home := tmp_path_factory.mktemp("page") / "home")
    shutil.rmtree(home / "out" / "stage2-cache")
    words = Chain(home).words("run-stage2", "--loop.steps", "60", "--optim.lr", "0.01")
    assert main(words) == 0
    out = home / "out"
    parts = ("--classifier", out / "stage1", "--cache", out / "labels", "--segmenter", out / "stage2-cache")
    with process(*map(str, parts)) as served:
        yield served.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    """Opens the page. At the end of each test: nothing was asked elsewhere, and the console has nothing to complain."""
    opened: list[BrowserContext] = []
    troubles: list[str] = []

    def open_page(*, at: str = url, expected: str = "nothing is", **settings: Any) -> Page:
        def heard(text: str) -> None:
            if not re.search(expected, text):
                troubles.append(text)

        context = browser.new_context(**settings)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda asked: None if is_at(asked.url, at) else heard(asked.url))
        page.on("pageerror", lambda error: heard(str(error)))
        page.on("console", lambda said: heard(said.text))
        opened.append(context)
        page.goto(at)
        if "401" not in expected:
            expect(page.locator("#versions")).not_to_be_empty()
        return page

    yield open_page
    for context in opened:
        context.close()
    assert troubles == []


def is_at(asked: str, url: str) -> bool:
    return asked.startswith((f"{url.rstrip('/')}/", "data:", "blob:"))


@contextmanager
def served(config: ServeConfig, tokens: Tokens | None = None) -> Iterator[str]:
    """The address of a service in a thread of this process."""
    app = create_app(build_house(config), tokens)
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def asked(url: str, path: str, data: bytes | None = None) -> Any:
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def segmented(url: str, data: bytes, query: str = "kappa=4") -> tuple[Any, np.ndarray]:
    """An answer of /v1/segment and its label map [H, W]."""
    made = asked(url, f"/v1/segment?encoding=rgb&{query}", data)
    channels = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["label_map"]["png"]))))
    return made, channels.astype(int) @ [1, 256, 65536]


@pytest.fixture
def photo(finished: Chain) -> Path:
    return finished.photo("v0")


def picked(page: Page, file: Path | FilePayload, kappa: int | None = None) -> Page:
    """The page once it shows a picture, segmented with so many labels."""
    page.set_input_files("#file", file)
    settled(page)
    if kappa is not None:
        page.get_by_label("κ as a number").fill(str(kappa))
        settled(page)
    return page


def settled(page: Page) -> None:
    expect(page.locator("#result")).to_have_attribute("aria-busy", "false")


def rows(page: Page, part: str = "kept") -> list[list[str]]:
    """Rank, label, score and pixels of the rows that are shown."""
    columns = "row => ['.rank', '.name', '.value', '.pixels'].map(cell => row.querySelector(cell).textContent)"
    found: list[list[str]] = page.locator(f"#{part} tr").evaluate_all(f"rows => rows.map({columns})")
    return found


def painted(page: Page, label: int) -> int:
    """Pixels of the painted map in the colour of a label, or in its darker one of borders."""
    red, green, blue = palette(label + 1)[label].tolist()
    return int(
        page.evaluate(f"""() => {{
        const map = document.querySelector('#map');
        const copy = new OffscreenCanvas(map.width, map.height).getContext('2d');
        copy.drawImage(map, 0, 0);
        const {{ data }} = copy.getImageData(0, 0, map.width, map.height);
        const colours = [1, 0.45].map(part => [{red}, {green}, {blue}].map(value => Math.floor(part * value)).join());
        let found = 0;
        for (let i = 0; i < data.length; i += 4) found += colours.includes(data.slice(i, i + 3).join());
        return found;
    }}""")
    )


def point(page: Page, x: int, y: int) -> str:
    """What the page says of a pixel of the map that is pointed at."""
    page.locator("#map").hover(position=place(page, x, y))
    return page.locator("#readout").inner_text()


def place(page: Page, x: int, y: int) -> Any:
    box = page.locator("#map").bounding_box()
    assert box is not None
    return {"x": (x + 0.5) * box["width"] / WIDTH, "y": (y + 0.5) * box["height"] / HEIGHT}


# ----------------------------------------------------------------------------------------------------------- ranking


def test_a_picture_shows_its_labels_as_bars_in_the_order_of_the_service(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo)
    ranked = asked(url, "/v1/rank?kappa=4", photo.read_bytes())
    wanted = [[str(rank), name, f"{score:.3f}"] for rank, (name, score) in
              enumerate(zip(ranked["names"], ranked["scores"], strict=True), 1)]  # fmt: skip
    assert [row[:3] for row in rows(page) + rows(page, "next")] == wanted
    bars = page.locator(".bar > span").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width) / 100)")
    assert bars == pytest.approx(ranked["scores"], abs=1e-4)


def test_kappa_parts_the_labels_that_are_kept_from_the_next(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo)
    slider, number = page.get_by_label("κ, labels kept"), page.get_by_label("κ as a number")
    names = asked(url, "/v1/rank?kappa=4", photo.read_bytes())["names"]
    assert number.input_value() == "2"  # as the network was trained
    for kappa in (1, 3, 4):
        slider.fill(str(kappa))
        settled(page)
        assert number.input_value() == str(kappa)
        assert [row[1] for row in rows(page)] == names[:kappa]
        assert [row[1] for row in rows(page, "next")] == names[kappa:]
        assert page.locator("#cut").is_visible() == (kappa < 4)
        found, missing = (len(part) for part in parts(segmented(url, photo.read_bytes(), f"kappa={kappa}")[0]))
        expect(page.get_by_role("status")).to_contain_text(f"{found} of {found + missing} kept")
    assert page.locator("#next .bar > span").count() == 0


def parts(made: Any) -> tuple[list[str], list[str]]:
    """Names of the labels found, and of those kept and not found."""
    return [label["name"] for label in made["legend"]], [CLASSES[label] for label in made["not_found"]]


def test_a_kappa_that_there_is_not_is_not_asked_for(visit: Visit, photo: Path) -> None:
    page = picked(visit(), photo)
    number = page.get_by_label("κ as a number")
    number.fill("5")
    assert number.evaluate("field => field.validationMessage") != ""
    settled(page)
    assert len(rows(page)) == 2


def test_an_answer_that_comes_late_is_ignored(visit: Visit, photo: Path) -> None:
    page = picked(visit(), photo)
    held: list[Route] = []
    page.route(re.compile("segment.*kappa=1&"), lambda route: held.append(route))
    slider = page.get_by_label("κ, labels kept")
    with page.expect_request(re.compile("segment.*kappa=1&")):
        slider.fill("1")
    slider.fill("3")
    settled(page)
    for route in held:
        route.fulfill(json={})
    page.wait_for_timeout(100)
    assert len(held) == 1 and len(rows(page)) == 3 and page.locator("#problem").is_hidden()


# --------------------------------------------------------------------------------------------------------- label map


def test_pointing_at_the_map_tells_the_label_of_that_pixel(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo, kappa=4)
    made, label_map = segmented(url, photo.read_bytes())
    assert len(np.unique(label_map)) > 1
    ids, scores = made["ranking"]["ids"], made["ranking"]["scores"]
    for label in np.unique(label_map).tolist():
        y, x = np.argwhere(label_map == label)[0].tolist()
        share = (label_map == label).mean()
        wanted = f"{CLASSES[label]}: rank {ids.index(label) + 1}, score {scores[ids.index(label)]:.3f}"
        assert point(page, x, y) == f"{wanted}, {100 * share:.1f} % of the pixels"


def test_the_map_is_painted_in_the_colours_of_its_labels(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo, kappa=4)
    _, label_map = segmented(url, photo.read_bytes())
    size = page.locator("#map").evaluate("map => map.width * map.height")
    for label in range(len(CLASSES)):
        assert painted(page, label) / size == pytest.approx((label_map == label).mean(), abs=0.01)
    page.get_by_label("Opacity of the map").fill("25")
    assert page.locator("#map").evaluate("map => map.style.opacity") == "0.25"


def test_a_label_that_is_switched_off_leaves_the_map(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo, kappa=4)
    made, _ = segmented(url, photo.read_bytes())
    largest = made["legend"][0]
    assert painted(page, largest["id"]) > 0
    switch = page.get_by_role("checkbox", name=largest["name"])
    switch.click()
    settled(page)
    assert painted(page, largest["id"]) == 0
    assert largest["name"] not in page.locator("#legend").inner_text()
    assert dict((row[1], row[3]) for row in rows(page))[largest["name"]] == "off"
    after, _ = segmented(url, photo.read_bytes(), f"kappa=4&without={largest['id']}")
    assert page.locator("#legend li").all_inner_texts() == [
        f"{label['name']} {100 * label['share']:.1f} %" for label in after["legend"]
    ]
    expect(switch).to_be_focused()
    page.get_by_role("button", name="Switch all on").click()
    settled(page)
    assert painted(page, largest["id"]) > 0 and switch.is_checked()


def test_no_label_left_is_a_problem_that_is_told(visit: Visit, photo: Path) -> None:
    page = picked(visit(expected="status of 422"), photo, kappa=1)
    page.get_by_role("checkbox").click()
    expect(page.get_by_role("alert")).to_contain_text("leave one")
    expect(page.locator("#figure")).to_have_class("stale")


def test_labels_kept_and_not_found_are_listed(visit: Visit, url: str, photo: Path) -> None:
    page = visit()

    def without_two(route: Route) -> None:  # as a network that finds two of the four
        made = json.loads(route.fetch().body())
        flat = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        first, second, *rest = made["ranking"]["ids"]
        flat[..., 0], flat[:9, :, 0] = first, second
        file = io.BytesIO()
        Image.fromarray(flat).save(file, "PNG")
        made["label_map"]["png"] = base64.b64encode(file.getvalue()).decode()
        made["legend"] = [
            {"id": label, "name": CLASSES[label], "colour": "#000000", "share": share, "rank": rank}
            for rank, (label, share) in enumerate(((first, 0.75), (second, 0.25)), 1)
        ]
        route.fulfill(json={**made, "not_found": rest})

    page.route(re.compile("segment"), without_two)
    picked(page, photo, kappa=4)
    names = asked(url, "/v1/rank?kappa=4", photo.read_bytes())["names"]
    expect(page.locator("#missing")).to_have_text(f"Kept, not found: {names[2]}, {names[3]}.")
    assert [row[3] for row in rows(page)] == ["75.0 %", "25.0 %", "not found", "not found"]
    assert point(page, 3, 8).startswith(names[1]) and point(page, 3, 9).startswith(names[0])


def test_a_picture_lies_below_its_map_as_its_camera_was_held(visit: Visit) -> None:
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(NOISE).save(file, "JPEG", exif=turned)
    page = picked(visit(), {"name": "turned.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()})
    box = page.locator("#stage").bounding_box()
    assert box is not None and box["width"] / box["height"] == pytest.approx(HEIGHT / WIDTH, rel=0.02)
    assert page.locator("#photo").evaluate("photo => photo.width < photo.height")
    assert page.locator("#misfit").is_hidden()


def test_all_labels_can_be_kept_without_a_ranking(visit: Visit, photo: Path) -> None:
    page = picked(visit(), photo)
    page.get_by_label("Ranked by").select_option("complete")
    settled(page)
    assert [row[1] for row in rows(page)] == list(CLASSES)
    assert page.locator("#kappa-line").is_hidden() and page.get_by_text("Nothing is ranked").is_visible()


# -------------------------------------------------------------------------------------------------------------- rows


def test_a_cached_image_shows_its_row_and_says_that_there_is_no_picture(visit: Visit, url: str) -> None:
    page = visit()
    expect(page.locator("#ids option")).to_have_count(8)
    page.get_by_label("Id of a cached image").fill("a3")
    page.get_by_role("button", name="Show labels").click()
    settled(page)
    row = asked(url, "/v1/caches/labels/labels/a3")
    assert [r[1] for r in rows(page) + rows(page, "next")] == row["names"]
    assert page.get_by_text("no pictures").is_visible() and page.get_by_text(row["source"]).is_visible()
    assert page.locator("#kappa").get_attribute("max") == str(STORED)
    assert page.locator("#figure").is_hidden() and page.locator("#row-actions").is_hidden()
    assert page.get_by_role("checkbox").count() == 0


def test_a_cached_row_can_rank_the_picture(visit: Visit, url: str, photo: Path) -> None:
    page = picked(visit(), photo)
    page.get_by_label("Id of a cached image").fill("a3")
    page.keyboard.press("Enter")
    with page.expect_request(re.compile("ranking=cache&cache=labels&image_id=a3")):
        page.get_by_role("button", name="Use this row for the picture").click()
    settled(page)
    row = asked(url, "/v1/caches/labels/labels/a3")
    assert [r[1] for r in rows(page) + rows(page, "next")] == row["names"]
    assert page.get_by_label("Ranked by").input_value() == "cache"
    assert page.locator("#map").is_visible()


def test_an_id_that_is_not_cached_is_a_problem_that_is_told(visit: Visit) -> None:
    page = visit(expected="status of 404")
    page.get_by_label("Id of a cached image").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("'nobody' is not among the 8 of cache labels")


# ---------------------------------------------------------------------------------------------------------- problems


def test_a_file_that_is_no_picture_is_a_problem_that_is_told(visit: Visit, photo: Path) -> None:
    page = visit(expected="status of 415")
    page.set_input_files("#file", {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_contain_text("notes.jpg: no picture of JPEG, PNG, WEBP; convert it")
    assert page.locator("#result").is_hidden()
    picked(page, photo)
    assert page.locator("#problem").is_hidden() and page.locator("#map").is_visible()


def test_a_busy_service_is_asked_again(visit: Visit, photo: Path) -> None:
    page = visit(expected="status of 503")
    busy = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"detail": "8 images are being worked on"}}
    page.route(re.compile("segment"), lambda route: route.fulfill(**busy), times=1)
    page.set_input_files("#file", photo)
    expect(page.get_by_role("status")).to_contain_text("8 images are being worked on")
    settled(page)
    assert page.locator("#map").is_visible() and page.locator("#problem").is_hidden()


def test_a_service_that_is_gone_can_be_tried_again(visit: Visit, photo: Path) -> None:
    page = visit(expected="ERR_CONNECTION_REFUSED")
    page.route(re.compile("rank"), lambda route: route.abort("connectionrefused"), times=1)
    page.set_input_files("#file", photo)
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.get_by_role("button", name="Try again").click()
    settled(page)
    assert page.locator("#map").is_visible()


def test_a_token_is_asked_for_and_kept_in_this_tab_alone(visit: Visit, settings: Any, photo: Path) -> None:
    with served(settings(segmenter=None), Tokens((TOKEN,))) as url:
        page = visit(at=url, expected="status of 401")
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        for text in ("a-wrong-one", TOKEN):
            field.fill(text)
            page.keyboard.press("Enter")
            expect(page.get_by_text("did not accept")).to_be_visible(visible=text != TOKEN)
        expect(page.locator("#versions")).not_to_be_empty()
        picked(page, photo)
        assert len(rows(page)) == len(CLASSES)
        stores = "() => [{...sessionStorage}, localStorage.length, document.cookie]"
        assert page.evaluate(stores) == [{"kappaseg-token": TOKEN}, 0, ""]
        page.locator("#request summary").click()
        assert TOKEN not in page.content() and "Bearer $TOKEN" in page.locator("#curl").inner_text()


# ------------------------------------------------------------------------------------------------- parts not served


def test_caches_alone_are_looked_up(visit: Visit, settings: Any) -> None:
    with served(settings(classifier=None, segmenter=None)) as url:
        page = visit(at=url)
        page.get_by_label("Id of a cached image").fill("v1")
        page.keyboard.press("Enter")
        settled(page)
        assert len(rows(page)) == STORED
        assert page.locator("#drop").is_hidden()
        absent = page.locator("#absent").inner_text()
        assert "--classifier RUN" in absent and "--segmenter RUN" in absent and "--cache DIR" not in absent


def test_a_classifier_alone_ranks(visit: Visit, settings: Any, photo: Path) -> None:
    with served(settings(caches=(), segmenter=None)) as url:
        page = picked(visit(at=url), photo, kappa=3)
        names = asked(url, "/v1/rank", photo.read_bytes())["names"]
        assert [row[1] for row in rows(page)] == names[:3] and [row[1] for row in rows(page, "next")] == names[3:]
        assert page.locator("#photo").is_visible() and page.locator("#map").is_hidden()
        for gone in ("#lookup", "#ranking-line", "#map-tools", "#kept input"):
            assert not page.locator(gone).first.is_visible()
        assert "--segmenter RUN" in page.locator("#absent").inner_text()


def test_a_segmenter_that_ranks_for_itself_needs_nothing_else(
    visit: Visit, settings: Any, joint_run: Path, photo: Path
) -> None:
    with served(settings(classifier=None, caches=(), segmenter=str(joint_run))) as url:
        page = picked(visit(at=url), photo, kappa=3)
        made = asked(url, "/v1/segment?kappa=3", photo.read_bytes())
        assert made["ranking"]["source"] == "own" == page.get_by_label("Ranked by").input_value()
        assert [row[1] for row in rows(page)] == made["ranking"]["names"]
        assert page.locator("#legend li").count() == len(made["legend"])
        page.get_by_label("κ as a number").fill("2")
        settled(page)
        assert [row[1] for row in rows(page, "next")] == made["ranking"]["names"][2:]  # known from before


# ---------------------------------------------------------------------------------------------------------- everybody


def test_the_page_is_as_wide_as_a_phone(visit: Visit, photo: Path) -> None:
    page = visit(viewport={"width": 360, "height": 740})
    wide = "document.documentElement.scrollWidth"
    expect(page.locator("#ids option")).to_have_count(8)
    assert page.evaluate(wide) == 360
    picked(page, photo, kappa=3)
    page.locator("#request summary").click()
    assert page.evaluate(wide) == 360
    page.get_by_label("Id of a cached image").fill("a3")
    page.keyboard.press("Enter")
    expect(page.locator("#row-actions")).to_be_visible()
    assert page.evaluate(wide) == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(visit: Visit, scheme: str, photo: Path) -> None:
    page = picked(visit(color_scheme=scheme, reduced_motion="reduce"), photo)
    colours = "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
    for place in ("h1", "#status", "#kept .name", "#next .name", "#kept td.pixels", "footer", "#kappa-of"):
        text, paper = page.locator(place).first.evaluate(colours)
        assert (luminance(paper) > 0.5) == (scheme == "light")
        assert contrast(text, paper) >= 4.5, place


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG has it."""
    values = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_everything_can_be_done_with_the_keyboard(visit: Visit, url: str, photo: Path) -> None:
    page = visit()
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # now: asked for at the key, it may be too late
    expect(page.locator("#ids option")).to_have_count(8)
    press = page.keyboard.press

    def to(name: str) -> None:
        for _ in range(20):
            press("Tab")
            if page.evaluate("document.activeElement.id || document.activeElement.type") == name:
                return
        raise AssertionError(f"{name} cannot be reached with Tab")

    to("file")
    press("Enter")
    for _ in range(100):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files(photo)
    settled(page)
    to("map")
    _, label_map = segmented(url, photo.read_bytes(), "kappa=2")
    x, y = WIDTH // 2, HEIGHT // 2
    for key, dx, dy in (("ArrowLeft", -1, 0), ("ArrowDown", 0, 1), ("Shift+ArrowRight", 1, 0), ("ArrowUp", 0, -1)):
        for _ in range(3):
            press(key)
            x, y = x + dx, y + dy
            assert page.locator("#readout .name").inner_text() == CLASSES[label_map[y, x]]
    expect(page.locator("#spoken")).to_contain_text(CLASSES[label_map[y, x]])
    to("kappa")
    press("ArrowRight")
    settled(page)
    assert len(rows(page)) == 3
    to("checkbox")
    press("Space")
    settled(page)
    assert rows(page)[0][3] == "off"


def test_every_control_has_a_name(visit: Visit, photo: Path) -> None:
    page = picked(visit(), photo)
    page.get_by_role("checkbox").first.click()
    page.locator("#request summary").click()
    settled(page)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in tree:
        is_focusable = any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        if is_focusable and node["role"]["value"] not in ("RootWebArea", "main"):
            named[node["name"]["value"]] = node["role"]["value"]
    assert "" not in named
    names = asked(page.url.rstrip("/"), "/v1/rank?kappa=2", photo.read_bytes())["names"]
    wanted = {
        "Choose a picture", "Id of a cached image", "Show labels", "Label map of the picture", "Opacity of the map",
        "Ranked by", "κ, labels kept", "κ as a number", "Switch all on", "As a request", "Copy", *names,
    }  # fmt: skip
    assert wanted <= set(named)


def test_pictures_can_be_dropped_and_pasted(visit: Visit, photo: Path) -> None:
    page = visit()
    expect(page.locator("#ids option")).to_have_count(8)
    content = base64.b64encode(photo.read_bytes()).decode()
    for event, holder, name in (("drop", "dataTransfer", "by drop.jpg"), ("paste", "clipboardData", "")):
        page.evaluate(f"""() => {{
            const bytes = Uint8Array.from(atob("{content}"), c => c.charCodeAt(0)), moved = new DataTransfer();
            moved.items.add(new File([bytes], "{name}", {{ type: "image/jpeg" }}));
            const event = new Event("{event}", {{ bubbles: true, cancelable: true }});
            document.dispatchEvent(Object.assign(event, {{ {holder}: moved }}));
        }}""")
        expect(page.locator("#subject")).to_have_text(name or "the pasted picture")
        settled(page)
        assert page.locator("#map").is_visible()
        assert f"@{name or 'FILE'}'" in (page.locator("#curl").text_content() or "")


def test_the_page_may_load_nothing_from_elsewhere(visit: Visit) -> None:
    page = visit(expected="Content Security Policy|elsewhere.invalid")
    violated = page.evaluate("""async () => {
        const found = [];
        document.addEventListener("securitypolicyviolation", event => found.push(event.effectiveDirective));
        await fetch("https://elsewhere.invalid/").catch(() => {});
        document.body.append(Object.assign(new Image(), { src: "https://elsewhere.invalid/a.png" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.bad = true" }));
        document.body.setAttribute("style", "color: red");
        await new Promise(done => setTimeout(done, 100));
        return window.bad ? ["script ran"] : found;
    }""")
    assert sorted(violated) == ["connect-src", "img-src", "script-src-elem", "style-src-attr"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the line is for curl, which is not installed")
def test_the_request_that_is_shown_gives_what_is_shown(visit: Visit, photo: Path) -> None:
    page = picked(visit(), photo, kappa=3)
    line = page.locator("#curl").text_content()
    assert line is not None
    words = shlex.split(line)
    made = json.loads(subprocess.run([*words, "-s"], cwd=photo.parent, capture_output=True, check=True).stdout)
    assert made["ranking"]["names"] == [row[1] for row in rows(page)]
