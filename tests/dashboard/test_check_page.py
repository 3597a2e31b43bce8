"""The Check page: what the launcher says is checked by a real process; a refusal is one line."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from initscope.config import factory
from initscope.config.run_config import quick
from initscope_dashboard.widgets import launch_form
from tests.conftest import ROOT

NETS = """
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.blocks = [nn.Linear(1024 * in_channels, 64), nn.Linear(64, 64)]
        self.head = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x.flatten(1)).relu()).relu())

def forgotten(num_classes, in_channels):
    return Own(num_classes, in_channels)

def refused(num_classes, in_channels):
    raise RuntimeError("no such size")
"""


def plain(text: str) -> str:
    return text.replace("\\", "")


@pytest.fixture
def page(runs, monkeypatch, tmp_path):
    """The page on a launcher that says LeNet-5 with zeros, and on a folder with two own networks."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(factory.FOLDER, str(tmp_path))
    opened = AppTest.from_file(
        str(ROOT / "dashboard/initscope_dashboard/screens/check.py"), default_timeout=240
    )
    config = quick().replace(model="lenet", width=0.5)
    for name in ("model", "data"):
        opened.session_state[launch_form.field_key(name)] = getattr(config, name)

    def say(**changes: str) -> AppTest:
        said = config.replace(**changes)
        opened.session_state[launch_form.CONFIGS] = [said.replace(init="zeros"), said]
        opened.session_state[launch_form.field_key("model")] = said.model
        return opened.run()

    return say


def test_findings_with_their_code_a_sound_network_and_a_launcher_with_a_mistake(page):
    shown = page()
    assert not shown.exception and shown.title[0].value == "Is anything wrong before it is trained?"
    shown = shown.button("check").click().run()
    assert not shown.exception, shown.exception
    assert "begin with the same weights" in shown.title[0].value
    assert shown.header[0].value == "What to mend"
    assert any("LeNet" in caption.value and "Zeros" in caption.value for caption in shown.caption)
    assert "kaiming_normal_" in shown.code[0].value
    shown = shown.selectbox("check_init").select("default").run()
    assert shown.title[0].value == "Is anything wrong before it is trained?", "that was another one's answer"
    shown = shown.button("check").click().run()
    assert shown.title[0].value.startswith("Nothing is wrong")
    assert [button.label for button in shown.button] == ["Check it", "Launch it"]
    shown.session_state[launch_form.CONFIGS] = []
    shown = shown.run()
    assert not shown.exception and "field to correct" in shown.info[0].value


def test_own_networks_as_the_launcher_lists_them(page):
    names = factory.offered("model")
    [forgotten] = [name for name in names if name.endswith(":forgotten")]
    [refused] = [name for name in names if name.endswith(":refused")]
    shown = page(model=forgotten, init="default")
    assert shown.selectbox("check_model").value == forgotten
    shown = shown.button("check").click().run()
    assert not shown.exception and "no parameters() and no optimizer holds them" in plain(
        shown.title[0].value
    )
    assert "nn.ModuleList" in shown.code[0].value
    shown = page(model=refused).button("check").click().run()
    assert not shown.exception and shown.title[0].value == "It could not be checked."
    assert "no such size" in plain(shown.error[0].value) and "\n" not in shown.error[0].value


def test_who_only_looks_starts_nothing(page, monkeypatch):
    monkeypatch.setenv("INITSCOPE_READ_ONLY", "1")
    shown = page()
    assert not shown.exception and not shown.button
    assert shown.info[0].value == "Not measured: nothing is started for those who only look."
