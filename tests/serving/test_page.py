"""The page at /, in a real headless Chromium, against a real server of the embedded model."""

from __future__ import annotations

import base64
import time
from itertools import pairwise

import httpx2
import pytest
from fake_experts import make_experts
from vision_bases import drawn as picture_of
from vision_bases import make_vision

pytest.importorskip("playwright", reason="nox -s page installs it")
pytestmark = pytest.mark.page
import screenshot  # noqa: E402  (docs/screenshot.py: it photographs the same page)

QUESTION, MIX = screenshot.QUESTION, "mix:math=0.6,code=0.9"
COMPLETE = "Both answers are complete."


@pytest.fixture(scope="module")
def browser():
    try:
        with screenshot.chromium() as browser:
            yield browser
    except SystemExit as missing:  # which pytest takes for the end of a fixture's first use alone
        pytest.fail(str(missing))


@pytest.fixture(scope="module")
def address():
    with screenshot.served("--strategy", "scores") as address:
        yield address


@pytest.fixture
def visit(browser):
    """Opens the page; none may ask another host for anything, nor write an error to the console, unless `failures`."""
    contexts, problems = [], []

    def go(address, failures=False, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda r: r.url.startswith(f"{address}/") or problems.append(r.url))
        page.on("pageerror", lambda e: problems.append(str(e)))
        if not failures:  # Chromium writes every 4xx to the console
            page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.goto(address)
        page.wait_for_load_state("networkidle")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not problems


def asked(address, model, question=QUESTION, **headers):
    """The API's own answer, and what was chosen."""
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    answer = httpx2.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    return answer["choices"][0]["message"]["content"], answer["transformer2"]


def wait(page):
    page.get_by_text(COMPLETE).wait_for(state="attached", timeout=60_000)
    page.locator("#strips[aria-busy=false]").wait_for()


def texts(page):
    return page.locator("#base").text_content(), page.locator("#adapted").text_content()


def bars(page):
    """Name -> (value, share of its track that is filled)."""
    found = page.get_by_role("meter").evaluate_all(
        "all => all.map((m) => [m.ariaLabel, Number(m.ariaValueNow), m.firstChild.getBoundingClientRect().width"
        " / m.getBoundingClientRect().width, m.checkVisibility()])"
    )
    assert all(visible for *_, visible in found)
    return {name: (value, share) for name, value, share, _ in found}


def tab_to(page, selector):
    for _ in range(40):
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {selector}")


def test_by_keyboard_alone(visit, address):
    page = visit(address)
    page.keyboard.type(QUESTION)  # the question has the focus
    page.keyboard.press("Enter")
    wait(page)
    adapted, chosen = asked(address, "auto")
    assert texts(page) == (asked(address, "base")[0], adapted)
    shown = bars(page)
    assert list(shown) == list(chosen["probabilities"]) == ["math", "code", "reasoning", "other"]
    for name, (value, share) in shown.items():
        assert value == pytest.approx(chosen["probabilities"][name], abs=1e-4)
        assert share == pytest.approx(value, abs=0.01)
    assert page.locator("#adapted-name").text_content() == chosen["choice"] == "code"
    assert page.locator("#bars-note").text_content().endswith("(scores) takes code.")

    tab_to(page, "[name=model]")
    page.keyboard.press("ArrowLeft")  # from the first round to the last
    assert page.locator("[name=model]:checked").get_attribute("value") == "mix"
    for name, steps in {"math": 12, "code": 18, "reasoning": 0}.items():
        tab_to(page, f"#weight-{name}")
        page.keyboard.press("Home")
        for _ in range(steps):
            page.keyboard.press("ArrowRight")
    assert page.locator("output").all_text_contents() == ["0.60", "0.90", "0.00"]
    tab_to(page, "#send")
    page.keyboard.press("Enter")
    wait(page)
    mixed, _ = asked(address, MIX)
    assert mixed != adapted and texts(page) == (asked(address, "base")[0], mixed)
    assert bars(page)["code"][0] == pytest.approx(chosen["probabilities"]["code"], abs=1e-4)  # still its own view
    assert page.locator("#adapted-name").text_content() == "0.60 math + 0.90 code"
    base_words, mixed_words = (text.split() for text in texts(page))
    apart = [(a, b) for a, b in zip(base_words, mixed_words, strict=True) if a != b]
    assert apart == [("+", "-"), ("*", "+")]
    assert page.locator("#base mark").all_text_contents() == [a for a, _ in apart]
    assert page.locator("#adapted mark").all_text_contents() == [b for _, b in apart]


def drawn(page):
    """Matrix -> [(whether z < 1, opacity)] of the picture."""
    return page.locator("#strips canvas").evaluate_all(
        "all => all.map((c) => [c.ariaLabel.split(':')[0],"
        " [...c.getContext('2d').getImageData(0, 0, c.width, 1).data].reduce((pixels, v, i) =>"
        " (i % 4 ? pixels.at(-1).push(v) : pixels.push([v]), pixels), []).map(([r, g, b, a]) => [b > r, a])])"
    )


def test_the_picture_of_z(visit, address):
    page = visit(address)
    z = {
        name: httpx2.get(f"{address}/v1/experts/{name}/z").json()["matrices"] for name in ("math", "code", "reasoning")
    }

    def check(layer, weights):
        mixed = {
            matrix: [1 + sum(w * (z[n][matrix][i] - 1) for n, w in weights.items()) for i in range(len(values))]
            for matrix, values in z["math"].items()
        }
        page.locator("#strips[aria-busy=false]").wait_for()
        far = float(page.locator(".ends span").last.text_content()) - 1
        assert far == pytest.approx(max(abs(v - 1) for values in mixed.values() for v in values), abs=0.1)
        found = dict(drawn(page))
        assert len(found) == 7
        for name, pixels in found.items():
            values = mixed[f"model.layers.{layer}.{name}"]
            assert len(pixels) == len(values)
            for (less, opacity), value in zip(pixels, values, strict=True):
                assert opacity == pytest.approx(255 * abs(value - 1) / far, abs=1)
                assert less == (value < 1) or opacity < 10  # a colour that faint is rounded away

    check(0, {"math": 1})
    page.get_by_label("Layer").select_option("2")
    check(2, {"math": 1})
    page.get_by_label("Whose z").select_option("reasoning")
    check(2, {"reasoning": 1})
    page.get_by_label("mix", exact=True).check()
    for name, weight in screenshot.WEIGHTS.items():
        page.locator(f"#weight-{name}").fill(str(weight))
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    wait(page)
    check(2, screenshot.WEIGHTS)


STOPS = {
    "button": "document.getElementById('stop').click()",
    "Escape": "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))",
}


@pytest.mark.parametrize("how", STOPS)
def test_stop(visit, address, how):
    page = visit(address)
    page.evaluate(  # at the first piece of the answer, however fast the machine is
        f"""new MutationObserver((_, observer) => {{
            if (!document.getElementById('adapted').textContent) return;
            observer.disconnect();
            {STOPS[how]};
        }}).observe(document.getElementById('adapted'), {{childList: true}})"""
    )
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_text("stopped").nth(1).wait_for()
    cut, whole = texts(page)[1], asked(address, "auto")[0]
    assert cut and cut != whole and whole.startswith(cut)
    assert page.locator("#error").text_content() == page.locator("#status").text_content() == ""
    assert page.locator("#stop").is_disabled()
    end = time.monotonic() + 30
    while "transformer2_requested 0.0" not in httpx2.get(f"{address}/metrics").text:  # the rows are free again
        assert time.monotonic() < end
        time.sleep(0.05)
    page.keyboard.press("Enter")
    wait(page)
    assert texts(page)[1] == whole


def test_a_new_question_takes_the_place_of_the_one_before(visit, address):
    page = visit(address)
    page.keyboard.type("Design plirop(x): lift by 4, scale by 2, lower by 3, drop by 1.")
    page.keyboard.press("Enter")
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    wait(page)
    assert texts(page) == (asked(address, "base")[0], asked(address, "auto")[0])


def test_an_error_of_the_server_is_shown(visit, address):
    page = visit(address, failures=True)
    page.get_by_label("Your question").fill("f ( x ) " * 100)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    alert.get_by_text("shorten the prompt").wait_for()
    assert alert.text_content().count("shorten") == 1  # of three streams with the same trouble
    assert page.get_by_text("failed", exact=True).count() == 2
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    wait(page)
    assert alert.text_content() == "" and texts(page)[0] == asked(address, "base")[0]


def test_a_server_that_is_gone(visit):
    with screenshot.served("--strategy", "scores") as address:
        page = visit(address, failures=True)
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()


def test_api_key_and_a_strategy_without_probabilities(visit):
    with screenshot.served(TRANSFORMER2_API_KEY="s3cret") as address:
        page = visit(address, failures=True)
        page.get_by_role("alert").get_by_text("API key").wait_for()
        for key in ("wrong", "s3cret"):
            tab_to(page, "#key")
            page.keyboard.press("Control+A")
            page.keyboard.type(key)
            with page.expect_response("**/v1/models") as response:
                page.keyboard.press("Enter")
            assert response.value.ok == (key == "s3cret")
        page.locator("#facts").get_by_text("math").wait_for()
        assert page.get_by_role("alert").text_content() == ""
        page.get_by_label("Your question").fill(QUESTION)
        page.get_by_label("Your question").press("Enter")
        wait(page)
        adapted, chosen = asked(address, "auto", authorization="Bearer s3cret")
        assert texts(page)[1] == adapted and chosen["probabilities"] is None
        assert {name: value for name, (value, _) in bars(page).items()} == {"math": 0, "code": 1, "reasoning": 0}
        assert "wrote “code”" in page.locator("#bars-note").text_content()


def test_the_policy_is_in_force(visit, address):
    policy = httpx2.get(address).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    page = visit(address, failures=True)
    added = "const s = document.createElement('script'); {}; document.head.append(s)"
    page.evaluate(added.format("s.textContent = 'window.intruder = 1'"))
    page.evaluate(added.format("s.src = 'data:text/javascript,window.intruder = 1'"))
    page.wait_for_timeout(200)  # a script of a data: address would take a moment
    assert page.evaluate("window.intruder") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(visit, address, scheme):
    page = visit(address, viewport={"width": 320, "height": 640}, color_scheme=scheme, has_touch=True)
    page.get_by_role("button", name="both at once").tap()
    assert page.get_by_label("Your question").input_value() == QUESTION
    page.get_by_label("mix", exact=True).tap()
    for name, weight in screenshot.WEIGHTS.items():
        page.locator(f"#weight-{name}").fill(str(weight))
    page.get_by_role("button", name="Ask").tap()
    wait(page)
    assert texts(page)[1] == asked(address, MIX)[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    cards = [card.bounding_box() for card in page.locator(".card").all()]
    assert len(cards) == 5 and all(a["y"] + a["height"] <= b["y"] for a, b in pairwise(cards))
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]") > 127
    assert light == (scheme == "light")


def test_the_picture_of_the_docs(browser, address, tmp_path):
    screenshot.photograph_page(browser, address, tmp_path / "page.png")
    picture = (tmp_path / "page.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and int.from_bytes(picture[16:20]) == 1200
    assert len(picture) <= screenshot.LARGEST["page"]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """Address of a server whose base takes pictures, and two pictures."""
    folder = tmp_path_factory.mktemp("seeing")
    base = str(make_vision(folder / "base"))
    experts = make_experts(folder / "experts", base, ("math", "code"), std=0.3)
    named = ",".join(f"{name}={path}" for name, path in zip(("math", "code"), experts, strict=True))
    files = []
    for i in range(2):
        files.append(folder / f"{i}.png")
        picture_of(i, (60, 40)).save(files[-1])
    with screenshot.served("--base", base, "--experts", named, "--max_tokens", "8", "--max_body", "30000") as address:
        yield address, files


def test_a_picture_is_shown_with_the_question(visit, seeing):
    address, files = seeing
    page = visit(address)
    answers = []
    page.get_by_label("Your question").fill("How many?")
    tab_to(page, "#picture")  # it is there, and the keyboard reaches it
    for file in [*files, None]:
        if file is None:
            tab_to(page, "#no-picture")
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.id") == "picture"
            assert page.get_by_role("button", name="Remove the picture").is_hidden()
        else:
            page.get_by_label("Picture").set_input_files(file)
        page.get_by_role("button", name="Ask").click()
        wait(page)
        answers.append(page.locator("#base").text_content())
        content = "How many?"
        if file is not None:
            url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "How many?"}]
        assert answers[-1] == asked(address, "base", content)[0]
    assert len(set(answers)) == 3


def test_a_picture_that_is_refused_is_said(visit, seeing, tmp_path):
    address, _ = seeing
    page = visit(address, failures=True)
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "large.png").write_bytes(bytes(40_000))
    page.get_by_label("Your question").fill("How many?")
    for name, said in (("notes", "no picture of a known kind"), ("large", "more than the 30000")):
        page.get_by_label("Picture").set_input_files(tmp_path / f"{name}.png")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("alert").filter(has_text=said).wait_for()


def test_a_base_of_text_alone_is_asked_without(visit, address):
    assert visit(address).locator("#picture").is_hidden()
