"""``initscope report``: one comparison, or one run, as a single HTML file that opens offline.

The figures are those of the pages; Plotly is inside the file. Everything that came from a person or a run is
escaped.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from initscope.comparison import differences
from initscope.comparison.compare import Comparison, compare
from initscope.comparison.statistics import p_text
from initscope.config.catalog import init_title
from initscope.config.run_config import OPTIONS
from initscope.diagnosis.diagnose import diagnose
from initscope.errors import InitScopeError, RunFolderError
from initscope.schema import Cause, Status
from initscope.store import Run, RunInfo, Runs
from initscope.store.files import number, replacing
from initscope.store.run import with_loss
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.content.breakdown import breakdown
from initscope_dashboard.figures import bands, base, curves, depth, heatmap, ratio

METRIC = "grad_norm"
STYLE = """
:root { color-scheme: light }
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; background: #FBF9F4; color: #22262B; font: 16px/1.55 system-ui, sans-serif }
h1, h2 { font-family: Georgia, 'Source Serif 4', serif; line-height: 1.2 } h1 { font-size: 1.9rem } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } td, th { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #D3CBBB }
.two { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem } .two > * { min-width: 0 } .warn { background: #F2EEE5; padding: .6rem .9rem; border-left: 4px solid #C04E00 }
.wide { overflow-x: auto } .muted { color: #5F6772 } figure { margin: 0; break-inside: avoid }
"""  # noqa: E501


def report(a: Sequence[Run], b: Sequence[Run] = ()) -> str:
    """The whole document. One group alone is described; two are compared."""
    body = _compared(a, b) if b else _alone(a)
    title = html.escape(body[0])
    made = dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
        f"content='width=device-width'><title>{title}</title>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script><body><h1>{title}</h1>{''.join(body[1:])}"
        f"<p class=muted>InitScope, {html.escape(made)}.</p></body></html>"
    )


def _compared(a: Sequence[Run], b: Sequence[Run]) -> list[str]:
    result = compare(a, b)
    one_a, one_b = a[0].info(), b[0].info()
    frames = {run.id: _frame(run, "layers") for run in (a[0], b[0])}
    cells = [heatmap.heatmap_data(frames[info.run], METRIC) for info in (one_a, one_b)]
    limits = heatmap.shared_limits(cells)
    maps = [
        _figure(
            heatmap.heatmap(each, title=f"{side} · {info.name}", limits=limits),
            f"{side}: gradient norm of every layer over the steps",
        )
        for each, side, info in zip(cells, "AB", (one_a, one_b), strict=True)
    ]
    parts = [f"{theme.VERDICTS[result.verdict].shape} {result.headline}", _how_sure(result)]
    if result.warning:
        parts.append(f"<p class=warn>{html.escape(result.warning)}</p>")
    parts += [
        "<h2>Every layer's gradient</h2><p class=muted>Both maps share one colour scale; the third is B "
        "over A.</p>",
        f"<div class=two>{''.join(maps)}</div>",
    ]
    parts.append(_figure(ratio.ratio(ratio.ratio_data(*cells), title="B over A"), "Ratio of B to A"))
    parts.append(
        _figure(
            depth.depth([base.subject(one_a), base.subject(one_b)], frames, METRIC),
            "First-step gradient norm by depth",
        )
    )
    parts += _loss(dict(zip(result.labels, (a, b), strict=True)))
    infos = [run.info() for run in (*a, *b)]
    parts += [
        _why([a[0], b[0]]),
        "<h2>What differs</h2>",
        _differences(result, infos),
        "<h2>Runs</h2>",
        _runs(infos),
    ]
    return parts


def _alone(a: Sequence[Run]) -> list[str]:
    infos = [run.info() for run in a]
    first = infos[0]
    mark = theme.outcome_mark(first.outcome, first.status)
    cells = heatmap.heatmap_data(_frame(a[0], "layers"), METRIC)
    return [
        f"{mark.shape} {first.name}: {mark.word}",
        _figure(heatmap.heatmap(cells, title="Gradient norm"), "Gradient norm of every layer over the steps"),
        *_loss({first.init: a}),
        _why(a[:1]),
        "<h2>Runs</h2>",
        _runs(infos),
        "<h2>Configuration</h2>",
        _table(
            [[OPTIONS[k].title if k in OPTIONS else k, _value(v)] for k, v in first.config.items()],
            ["Field", "Value"],
        ),
    ]


def _loss(sides: Mapping[str, Sequence[Run]]) -> list[str]:
    """Curves of a few runs, or median and range of each side over many; ``sides`` by label."""
    runs = [run for side in sides.values() for run in side]
    infos = [run.info() for run in runs]
    if len(runs) > 4:
        groups = {label: [_frame(run, "steps") for run in side] for label, side in sides.items()}
        drawn = [
            _figure(bands.bands(groups, name, classes=headlines.common_classes(infos)), f"{name} over seeds")
            for name in ("loss", "accuracy")
        ]
        return ["<h2>Loss and accuracy</h2>", f"<div class=two>{''.join(drawn)}</div>"]
    subjects = [base.subject(info) for info in infos]
    steps, epochs = ({run.id: _frame(run, table) for run in runs} for table in ("steps", "epochs"))
    drawn = [
        _figure(
            curves.curves(subjects, steps, epochs, name, classes=headlines.common_classes(infos)),
            f"{name} over the steps",
        )
        for name in ("loss", "accuracy")
    ]
    return ["<h2>Loss and accuracy</h2>", f"<div class=two>{''.join(drawn)}</div>"]


def _why(runs: Sequence[Run]) -> str:
    """The cause of each run with the evidence for it, and what would help."""
    told = []
    for run in runs:
        found = diagnose(run)
        evidence = "".join(
            f"<li>{html.escape(finding.text)} <span class=muted>({html.escape(finding.source)})</span></li>"
            for finding in found.findings
        )
        info = run.info()
        broken = breakdown(info.state, _frame(run, "steps"), _frame(run, "layers"))
        ended = info.status in (Status.FAILED, Status.CRASHED)
        advice = (
            ""
            if found.cause is Cause.HEALTHY and not ended
            else f"<p>{html.escape(headlines.advice(found, info.status))}</p>"
        )
        first = headlines.cause(
            found, info.status, info.error, broken, int(number(info.state.get("step")) or 0)
        )
        more = headlines.beside(found, info.status, broken)
        told.append(
            f"<p><b>{html.escape(info.name)}</b>: {html.escape(first)} "
            f"{html.escape(more)}</p><ul>{evidence}</ul>{advice}"
        )
    return "<h2>Why</h2>" + "".join(told)


def _how_sure(result: Comparison) -> str:
    (ka, na), (kb, nb) = result.converged["a"], result.converged["b"]
    low, high = result.interval
    return (
        f"<p>Converged: {ka} of {na} in A, {kb} of {nb} in B. Difference in convergence rate "
        f"{formatting.change(low)} to {formatting.change(high)} (95 % interval); "
        f"Fisher's exact test {p_text(result.p_value)}; effect size h = {result.effect:.2f}.</p>"
    )


def _differences(result: Comparison, infos: Sequence[RunInfo]) -> str:
    if not result.changed_fields:
        return f"<p>{headlines.nothing_differs(infos)}</p>"
    rows = [
        [differences.title(field), _value(values[0]), _value(values[1])]
        for field, values in result.changed_fields.items()
    ]
    return _table(rows, ["Field", "A", "B"])


def _runs(infos: list[RunInfo]) -> str:
    rows = [
        [
            info.run,
            init_title(info.init),
            _seed(info),
            theme.outcome_mark(info.outcome, info.status).text,
            formatting.fixed(info.scores[0]),
            formatting.percent(info.scores[1]),
        ]
        for info in infos
    ]
    return _table(rows, ["Run", "Initialization", "Seed", "Outcome", "Loss", "Accuracy"])


def _seed(info: RunInfo) -> str:
    """The seed that the run told, whoever told it."""
    told = differences.seed_of(info)
    return (
        "–"
        if told is None
        else ", ".join(f"{key} {value}" for key, value in told)
        if isinstance(told, tuple)
        else str(told)
    )


def _table(rows: list[list[str]], heads: list[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def _frame(run: Run, table: str) -> pd.DataFrame:
    rows = run.read(table)
    return (with_loss(rows) if table == "steps" else rows).to_pandas()


def _figure(figure: go.Figure, alt: str) -> str:
    """A figure with the light theme's colours in it, as HTML that uses the document's own Plotly."""
    drawn = go.Figure(_resolved(figure.to_dict()), skip_invalid=True)
    drawn.update_layout(
        width=None,
        autosize=True,
        title_x=0,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "color": "#22262B"},
    )
    for trace in drawn.data:
        if trace.type == "heatmap" and (trace.meta or {}).get("text"):
            value = {"share": ": %{z:.1%}", "mark": ""}.get(trace.meta["text"], ": 10^%{z:.2f}")
            trace.hovertemplate = f"<b>%{{y}}</b> · step %{{x}}<br>{trace.meta['what']}{value}<extra></extra>"
    inner = drawn.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return f"<figure role=img aria-label='{html.escape(alt, quote=True)}'>{inner}</figure>"


def _resolved(value: Any) -> Any:
    if isinstance(value, str):
        return theme.hex_color(value, dark=False) if value.startswith("var(--") else value
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolved(item) for item in value]
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """``report A [B] --output FILE [--runs DIR]``; exit status as the command line's."""
    parser = argparse.ArgumentParser(prog="report")
    parser.add_argument("sides", nargs="+")
    parser.add_argument("--output", required=True)
    parser.add_argument("--runs")
    given = parser.parse_args(arguments)
    try:
        runs = Runs(given.runs)
        groups = [runs.select(side) for side in given.sides[:2]]
        document = report(*groups)
        try:
            output = Path(given.output)
            with (
                replacing(output)
                if output.is_file() or not output.exists()
                else contextlib.nullcontext(output) as place
            ):  # a pipe is no file to replace
                place.write_text(document, encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                f"cannot write {given.output}: {error.strerror or error}; free space, or choose another "
                "--output"
            ) from None
    except InitScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
