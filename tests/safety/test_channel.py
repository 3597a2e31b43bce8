"""What comes over a page's own channel: forged values, wrong kinds, messages that are none; it harms nobody
but its sender.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from streamlit.components.v2.bidi_component.main import _make_trigger_id
from streamlit.proto.BackMsg_pb2 import BackMsg

from initscope.store import Run, Runs
from initscope_dashboard.server import websocket_filter
from tests.browser.conftest import Server
from tests.safety.damage import template
from tests.safety.visitors import Visitor

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Run]]:
    """A dashboard with one ended run."""
    run = template(Runs(tmp_path_factory.mktemp("channel") / "runs"))
    started = Server(run.path.parent)
    yield started, run
    started.close()


def rerun(visitor: Visitor, widget: str, **value: object) -> bytes:
    """A page's message in which one widget has any value of any kind."""
    message = BackMsg()
    message.rerun_script.query_string, message.rerun_script.page_name = visitor.query, visitor.page
    message.rerun_script.widget_states.widgets.add(id=widget, **value)
    return message.SerializeToString()


def asking(**request: object) -> bytes:
    return BackMsg(**request).SerializeToString()


def test_messages_that_no_page_sends(served):
    """What cannot be read ends its connection, without a word in the log; what no page asks for is not done.
    Everybody else goes on.
    """
    server, run = served
    before = server.log.read_text()

    async def send(data: bytes | str) -> int | None:
        """How the connection was closed; None: it was not, and the page still answers."""
        async with Visitor(server.port) as visitor:
            await visitor.open("gradients", run=[run.id])
            await visitor.socket.send(data(visitor) if callable(data) else data)
            closed, again = (
                asyncio.create_task(visitor.socket.wait_closed()),
                asyncio.create_task(visitor.open("gradients", run=[run.id])),
            )
            await asyncio.wait({closed, again}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            for task in (closed, again):
                task.cancel()
            await asyncio.gather(closed, again, return_exceptions=True)
            return visitor.socket.close_code

    async def all_of_it() -> None:
        unreadable = [
            "text",
            b"\xff" * 10,
            b"",
            b"x" * 2_000_000,
            *(
                lambda visitor, text=text: rerun(visitor, visitor.widgets["gradients-map"], json_value=text)
                for text in ("{", "1", '"x"', "[" * 20_000, "1" * 5_000, "")
            ),
        ]
        async with Visitor(server.port) as bystander:
            await bystander.open("gradients", run=[run.id])
            assert [await send(data) for data in unreadable] == [1008] * len(unreadable)
            for request in (
                {"load_git_info": True},
                {"clear_cache": True},
                {"debug_shutdown_runtime": True},
                {"set_run_on_save": True},
                {"debug_disconnect_websocket": True},
            ):
                assert await send(asking(**request)) is None, request
            await bystander.open("live", run=[run.id])
            assert bystander.failures == []

    asyncio.run(all_of_it())
    assert server.log.read_text() == before


def test_forged_values_stay_with_who_forged_them(served):
    """Clicks that are no points are no clicks; a widget's value of another kind is an error on that page
    alone, and in the log once.
    """
    server, run = served

    async def forge() -> tuple[list[str], list[str]]:
        async with (
            Visitor(server.port) as clicker,
            Visitor(server.port) as forger,
            Visitor(server.port) as bystander,
        ):
            for visitor in (clicker, bystander):
                await visitor.open("gradients", run=[run.id])
            events = _make_trigger_id(clicker.widgets["gradients-map"], "events")
            point = {"x": 1, "y": "conv1_1", "run": None, "trace": 0}
            for value in (
                5,
                "x",
                [],
                {},
                {"y": []},
                {"x": 1, "y": "fc1"},
                point | {"y": {"a": 1}},
                point | {"y": "<img src=x>"},
                point | {"y": "../.."},
                point | {"trace": 1e99},
                point,
            ):
                clicker._finished.clear()
                await clicker.socket.send(
                    rerun(
                        clicker, events, json_trigger_value=json.dumps([{"event": "click", "value": value}])
                    )
                )
                await asyncio.wait_for(clicker._finished.wait(), 60)
            await forger.open()
            for i in range(30):
                forger._finished.clear()
                await forger.socket.send(rerun(forger, forger.widgets["search"], int_value=i))
                await asyncio.wait_for(forger._finished.wait(), 60)
            await bystander.open("gradients", run=[run.id])
            assert len(forger.failures) > 20
            return clicker.failures, bystander.failures

    before = len(server.log.read_text())
    assert asyncio.run(forge()) == ([], [])
    said = server.log.read_text()[before:]
    assert said.count("Traceback") == 1 and len(said) < 5_000 and "\x1b" not in said, said


def test_what_pages_do_send_is_let_through():
    for message, asked in (
        ({"rerun_script": {}}, "rerun_script"),
        ({"stop_script": True}, "stop_script"),
        ({"app_heartbeat": True}, "app_heartbeat"),
        ({"backend_operation_request": {"deferred_file": {"file_id": "x"}}}, "deferred_file"),
        ({"backend_operation_request": {"dataframe_chunk": {"source_id": "x"}}}, "dataframe_chunk"),
    ):
        assert websocket_filter.request(asking(**message)) == asked in websocket_filter.ASKED


def test_operations_that_no_page_asks_for_are_not_let_through():
    for operation in ({"install_skills": {}}, {"dismiss_skills_nudge": {}}, {}):
        asked = websocket_filter.request(asking(backend_operation_request=operation))
        assert asked is not None and asked not in websocket_filter.ASKED
