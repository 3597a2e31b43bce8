"""Own factories on the dashboard: the operator's folder is offered, and no path that a visitor sends is ever
run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from streamlit.proto.BackMsg_pb2 import BackMsg

from initscope.config import catalog
from initscope.store import Runs
from tests.browser.conftest import Server, settle
from tests.browser.test_story import wait_until

MARK = "open(__file__ + '.ran', 'a').close()\n"
NET = (
    "from torch import nn\ndef tiny(num_classes) -> nn.Module:\n    return nn.Sequential(nn.Flatten(), "
    "nn.LazyLinear(num_classes))\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "offered").mkdir()
    (folder / "offered" / "nets.py").write_text(MARK + NET)
    (folder / "outside.py").write_text(MARK + NET)
    (folder / "offered" / "link.py").symlink_to(folder / "outside.py")
    started = Server(folder / "runs", INITSCOPE_FACTORIES=str(folder / "offered"))
    yield started
    started.close()


def forge(page: Page, old: str, new: str) -> list[str]:
    """Every widget value ``old`` that this tab sends becomes ``new``, as somebody's own client would send it.
    Gives what was forged.
    """
    sent: list[str] = []

    def between(route: WebSocketRoute) -> None:
        real = route.connect_to_server()

        def pass_on(message: bytes | str) -> None:
            if isinstance(message, bytes):
                parsed = BackMsg.FromString(message)
                for state in parsed.rerun_script.widget_states.widgets:
                    if state.string_value == old:
                        state.string_value = new
                        sent.append(new)
                message = parsed.SerializeToString()
            real.send(message)

        route.on_message(pass_on)

    page.route_web_socket("**/_stcore/stream", between)
    return sent


def choose_model(page: Page, name: str) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_role("combobox", name="Model").first.click()
    page.get_by_role("option", name=name).click()
    settle(page)


def test_the_operators_folder_is_offered_and_trains(page: Page, server: Server) -> None:
    page.goto(server.url)
    settle(page)
    page.get_by_text("More", exact=True).click()
    page.get_by_role("combobox", name="Model").first.click()
    titles = page.get_by_role("option").all_inner_texts()
    assert "nets.py:tiny" in titles and not any("link.py" in title or "outside" in title for title in titles)
    page.get_by_role("option", name="nets.py:tiny").click()
    settle(page)
    folder = server.runs.parent / "offered"
    assert not (folder / "nets.py.ran").exists(), "offered, and not a line of it run"
    page.get_by_role("button", name="Launch 2 runs").click()
    runs = Runs(server.runs)
    wait_until(
        lambda: [info.status for info in runs.list()] == ["finished", "finished"], 90, "both have trained"
    )
    info = runs.list()[0]
    assert (
        info.config["model"] == f"{folder.resolve()}/nets.py:tiny" and len(info.config["model_sha256"]) == 64
    )
    assert (folder / "nets.py.ran").exists()


def test_a_path_that_a_visitor_sends_is_never_run(page: Page, server: Server) -> None:
    """Forged into the launch form's messages it is no choice; typed where text is taken it is refused in one
    line.
    """
    runs = Runs(server.runs)
    before = runs.ids()
    folder = server.runs.parent
    sent = forge(page, "VGG11", f"{folder}/outside.py:tiny")
    page.goto(server.url)
    settle(page)
    choose_model(page, "VGG11")
    settle(page)
    assert sent, "the forged value was sent"
    shown = page.get_by_role("combobox", name="Model").first.input_value()
    refused = page.get_by_text("is not a file of the folder in INITSCOPE_FACTORIES").is_visible()
    assert shown in {entry.title for entry in catalog.MODELS.values()} or refused

    page.goto(f"{server.url}/sweep")
    settle(page)
    also = page.get_by_label("Also vary", exact=True)
    for _ in range(3):  # the page may be drawn anew and change what a click has just opened
        try:
            also.wait_for(state="visible", timeout=8_000)
            break
        except PlaywrightTimeout:
            page.get_by_text("Launch a sweep").click()
    for path in (f"{folder}/outside.py", f"{folder}/offered/link.py", f"{folder}/offered/../outside.py"):
        also.fill(f"depth=/../../../../../../../../..{path}:tiny")
        page.get_by_role("button", name="Launch the sweep").click()
        expect(page.get_by_text("is not a file of the folder in INITSCOPE_FACTORIES")).to_be_visible()
        settle(page)
    assert (
        runs.ids() == before
        and not list(folder.rglob("*outside.py.ran"))
        and not list(folder.rglob("link.py.ran"))
    )
