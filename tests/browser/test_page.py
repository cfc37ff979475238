"""The page `/pipeline` in a real Chromium, over a server that says what the test wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import Browser, browser
from tests.browser.png import colours
from tests.browser.scripted import Scripted, pipeline, serving
from zmqpp.watch.status import Event

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def clean(chromium: Browser, *urls: str) -> None:
    """Nothing went wrong in the page, and it asked nobody but its own server."""
    assert chromium.console() == []
    assert chromium.origins() == {f"http://{urlsplit(url).netloc}" for url in urls}


def pictured(path: Path) -> None:
    assert colours(path) > 8, f"{path} is blank"


def fits(chromium: Browser) -> bool:
    wide, room = chromium.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    return bool(wide <= room)


@pytest.mark.parametrize(
    ("stages", "width", "dark"), [(2, 1280, False), (5, 1280, True), (16, 1280, False), (16, 375, True)]
)
def test_every_stage_is_shown_with_its_figures(
    chromium: Browser, stages: int, width: int, dark: bool
) -> None:
    with serving(Scripted(pipeline(stages))) as url:
        chromium.open(url + "/pipeline", width=width, dark=dark)
        chromium.wait("#state", "ready")
        assert chromium.text("#model") == "meta-llama/Llama-3-8B"
        assert chromium.text("#f-bubble") == "8.3%"
        cards = chromium.run("return [...document.querySelectorAll('.stages .card')].map(e => e.innerText)")
        assert len(cards) == stages
        for index, card in enumerate(cards):
            assert f"Stage {index}" in card and f"{8 * index}-{8 * index + 8} of {8 * stages}" in card
            assert "10.0.0." in card and "21.4 GB" in card and "2.01B" in card
        assert "→ stage 1" in cards[0] and "shm · 34.6 MB/s" in cards[0] and "↩ stage 0" in cards[-1]
        drawn = chromium.run("return [...document.querySelectorAll('#ring .n')].map(e => e.textContent)")
        assert drawn == [str(index) for index in range(stages)]
        assert "killed by SIGKILL" in chromium.text("#events")
        assert labels_apart(chromium), "labels of the ring lie upon each other, or outside the drawing"
        assert fits(chromium)
        background = chromium.run("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(19, 21, 24)" if dark else "rgb(247, 247, 245)")
        pictured(chromium.screenshot(f"{stages}_stages_{width}_{'dark' if dark else 'light'}"))
        clean(chromium, url)


def labels_apart(chromium: Browser) -> bool:
    return bool(
        chromium.run(
            """
            const room = document.querySelector('#ring').getBoundingClientRect();
            const boxes = [...document.querySelectorAll('#ring text')].map(e => e.getBoundingClientRect());
            const inside = boxes.every(b => b.left >= room.left - 1 && b.right <= room.right + 1
                && b.top >= room.top - 1 && b.bottom <= room.bottom + 1);
            return inside && boxes.every((a, i) => boxes.slice(i + 1).every(b =>
                a.right < b.left + 1 || b.right < a.left + 1 || a.bottom < b.top + 5 || b.bottom < a.top + 5));
            """
        )
    )


def test_lost_stage_stands_out_and_comes_back(chromium: Browser) -> None:
    script = Scripted(pipeline(5))
    with serving(script) as url:
        chromium.open(url + "/pipeline")
        chromium.wait("#state", "ready")
        script.status.state, script.status.reason = "restarting", "stage 1 was killed by SIGKILL"
        script.status.stages[1].state, script.status.stages[1].reason = "lost", "no sign of life for 5 s"
        chromium.wait("#state", "restarting")
        assert chromium.text("#reason") == "stage 1 was killed by SIGKILL"
        assert "no sign of life for 5 s" in chromium.text(".stages .off")
        assert chromium.text("#announce") == "Pipeline restarting: stage 1 was killed by SIGKILL"
        assert chromium.run("return document.querySelectorAll('#ring .off').length") == 1
        pictured(chromium.screenshot("lost_stage"))
        healthy = pipeline(5)
        healthy.events.append(Event(healthy.at, "recovered", "none lost at all", 1))
        script.status = healthy
        chromium.wait("#state", "ready")
        chromium.wait("#events", "none lost at all")
        assert chromium.run("return document.querySelectorAll('.off').length") == 0
        clean(chromium, url)


def test_hostile_names_are_text(chromium: Browser) -> None:
    script = Scripted(pipeline(2))
    status = script.status
    status.model = status.reason = HOSTILE
    status.state = f"ready {HOSTILE}"
    status.events.append(Event(1e9, HOSTILE, HOSTILE))
    for stage in status.stages:
        stage.host = stage.device = stage.state = stage.reason = stage.log = HOSTILE
        stage.link.lane = stage.link.lane_reason = HOSTILE
    script.words = [HOSTILE]
    with serving(script) as url:
        chromium.open(url + "/pipeline", width=375)
        chromium.wait("#model", HOSTILE)
        script.gate.release()
        chromium.click("#send")
        chromium.wait("#answer", HOSTILE)
        chromium.wait("#said", "1 token")
        assert chromium.run("return document.querySelectorAll('img, main script').length") == 0
        assert chromium.driver.title.endswith(HOSTILE)  # and not what its script would have made of it
        assert fits(chromium)
        clean(chromium, url)


def test_server_that_goes_is_missed_and_found_again(chromium: Browser) -> None:
    script = Scripted(pipeline(4))
    with serving(script) as url:
        chromium.open(url + "/pipeline", width=375)
        chromium.wait("#state", "ready")
        port = int(url.rpartition(":")[2])
    chromium.wait("#notice", "No answer from the server for")
    chromium.wait("#notice", "it cannot be reached")
    assert chromium.text("#announce").startswith("The server does not answer")
    pictured(chromium.screenshot("server_gone_375"))
    with serving(script, port) as url:
        chromium.wait("#state", "ready")
        chromium.wait("#events", "the server answers again")
        assert chromium.text("#notice") == ""
        assert [line for line in chromium.console() if "net::ERR_" not in line] == []


def test_prompt_streams_word_by_word(chromium: Browser) -> None:
    script = Scripted(pipeline(2))
    with serving(script) as url:
        chromium.open(url + "/pipeline")
        chromium.wait("#state", "ready")
        chromium.write("#prompt", "San Francisco is a ")
        chromium.write("#max", "3")
        chromium.click("#send")
        chromium.wait("#said", "Waiting for the first token")
        for shown in ("San Francisco is a city", "city of", "city of hills"):
            script.gate.release()  # The server makes each word only after this.
            chromium.wait("#answer", shown)
        chromium.wait("#said", "3 tokens")
        assert "tokens/s, first after" in chromium.text("#said")
        pictured(chromium.screenshot("answer"))
        clean(chromium, url)
    (asked,) = script.asked
    assert (asked["model"], asked["prompt"]) == ("meta-llama/Llama-3-8B", "San Francisco is a ")
    assert (asked["max_tokens"], asked["stream"]) == (3, True)


def test_stop_aborts_the_request(chromium: Browser) -> None:
    script = Scripted(pipeline(2))
    with serving(script) as url:
        chromium.open(url + "/pipeline")
        chromium.wait("#state", "ready")
        chromium.click("#send")
        script.gate.release()
        chromium.wait("#answer", "city")
        chromium.click("#stop")
        chromium.wait("#said", "Stopped.")
        assert script.aborted.wait(20)
        assert chromium.run("return [$('send').disabled, $('stop').disabled]") == [False, True]
        clean(chromium, url)


def test_refusals_and_broken_answers_are_told_in_words(chromium: Browser) -> None:
    script = Scripted(pipeline(2))
    with serving(script) as url:
        chromium.open(url + "/pipeline")
        chromium.wait("#state", "ready")
        script.refusal = (503, "the pipeline is restarting: stage 1 was killed")
        chromium.click("#send")
        chromium.wait("#said", "The server answered 503: the pipeline is restarting: stage 1 was killed")
        script.refusal, script.breaks_with = None, "stage 1 was killed"
        for _ in script.words:
            script.gate.release()
        chromium.click("#send")
        chromium.wait("#said", "The answer broke off: stage 1 was killed")
        assert "city of hills" in chromium.text("#answer")


def test_page_works_below_a_path(chromium: Browser) -> None:
    script = Scripted(pipeline(2))
    with serving(script, prefix="/team/llama") as url:
        chromium.open(url + "/team/llama/pipeline")
        chromium.wait("#state", "ready")
        script.gate.release()
        chromium.click("#send")
        chromium.wait("#answer", "city")
        clean(chromium, url)


def test_every_control_has_a_name_and_the_keyboard_reaches_it(chromium: Browser) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    script = Scripted(pipeline(2))
    with serving(script) as url:
        chromium.open(url + "/pipeline")
        chromium.wait("#state", "ready")
        unnamed = chromium.run(
            "return [...document.querySelectorAll('input, textarea, button, [role=img], [tabindex]')]"
            ".filter(e => !(e.labels && e.labels.length) && !e.innerText && !e.getAttribute('aria-label')"
            " && !e.getAttribute('aria-labelledby')).map(e => e.id)"
        )
        assert unnamed == []
        reached = []
        for _ in range(4):
            chromium.driver.switch_to.active_element.send_keys(Keys.TAB)
            reached.append(chromium.run("return document.activeElement.id"))
        assert reached[:3] == ["prompt", "max", "send"]
        script.gate.release()
        chromium.driver.find_element(By.ID, "prompt").send_keys(Keys.CONTROL, Keys.ENTER)
        chromium.wait("#answer", "city")
        clean(chromium, url)
