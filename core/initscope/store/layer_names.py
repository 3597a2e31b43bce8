"""What layers are called: "layer 0 (Linear 64 to 16)" where a model gave them nothing but a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def layer_names(layers: Iterable[str], state: Mapping[str, Any]) -> dict[str, str]:
    """{name in the model: name for a person}, from ``status.json``: the recorder's fact ``layer_titles`` says
    what a numbered layer is.
    """
    facts = state.get("facts")
    titles = facts.get("layer_titles") if isinstance(facts, Mapping) else None
    titles = titles if isinstance(titles, Mapping) else {}
    return {name: _named(name, titles.get(name)) for name in layers}


def _named(name: str, title: Any) -> str:
    if not name.replace(".", "").isdigit():
        return name
    return f"layer {name} ({title})" if isinstance(title, str) else f"layer {name}"
