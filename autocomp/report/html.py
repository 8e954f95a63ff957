"""One self-contained, offline, interactive HTML report."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from autocomp.core.cost import WEIGHT_BYTES, format_cost, shown, title_of
from autocomp.core.metric import KL, positive, short_name
from autocomp.report.bits import BitsMap
from autocomp.report.front import FrontInfo, Growth, Point
from autocomp.report.palette import colours, optional
from autocomp.report.roofline import roofline_figure
from autocomp.report.table import (
    axis_title,
    describe,
    drawn,
    efficiency_cells,
    megabytes,
    number,
)

LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"},
    "margin": {"l": 70, "r": 20, "t": 20, "b": 55},
    "hoverlabel": {"align": "left"},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}


def render_html(info: FrontInfo, path: Path, bits: BitsMap | None = None) -> None:
    """Write the report: front and its growth, bits of the best plan, families, timings, points.

    Args:
        info: What to show.
        path: The file; written whole or not at all.
        bits: The map of the best plan; without it that section is left out.

    Raises:
        ConfigError: If plotly or Jinja2 is not installed.
    """
    plotly = optional("plotly.offline")
    environment = optional("jinja2").Environment(autoescape=True)
    environment.filters |= {"mb": megabytes, "num": number}
    template = resources.files("autocomp.report").joinpath("report.html.j2").read_text("utf-8")
    page = environment.from_string(template).render(
        info=info,
        loss=short_name(info.metric),
        unit=", nats" if info.metric == KL else "",
        conclusion=info.conclusion.lines(info.metric),
        bits=bits,
        subtitle=describe(info.settings),
        best=info.point(info.best),
        uniform=info.point(info.best_uniform),
        colours=colours(
            [*(p.family for p in info.points), *(str(row["family"]) for row in info.families)]
        ),
        worst=max((float(row["over_best"]) for row in info.families), default=1.0),
        plotly_script=plotly.get_plotlyjs(),
        front_figure=_div(_front_figure(info)),
        growth_figure=_div(_growth_figure(info.axis.growth)) if info.axis.growth else "",
        cost_title=title_of(info.cost, info.source),
        shown=shown,
        own_cost=info.cost != WEIGHT_BYTES,
        efficiency=[efficiency_cells(row) for row in info.efficiency],
        roofline_figure=_div(roofline_figure(info.roofline, LAYOUT)) if info.roofline else "",
        bits_figure=_div(_bits_figure(bits)) if bits else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _div(figure: Any) -> str:
    config = {"responsive": True, "displaylogo": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _front_figure(info: FrontInfo) -> Any:
    graph = optional("plotly.graph_objects")
    figure = graph.Figure()
    front = [p for p in info.points if p.on_front]
    figure.add_scatter(
        x=[shown(info.cost, p.cost) for p in front],
        y=[positive(p.loss) for p in front], mode="lines",
        line={"color": "#7b8794", "width": 1.5, "shape": "hv"}, name="front (searched)",
        hoverinfo="skip",
    )  # fmt: skip
    for family, colour in colours(p.family for p in info.points).items():
        members = [p for p in info.points if p.family == family]
        figure.add_scatter(
            x=[shown(info.cost, p.cost) for p in members],
            y=[positive(p.loss) for p in members],
            mode="markers", name=family,
            text=[_hover(info, p) for p in members], hoverinfo="text",
            marker={"color": colour, "size": 9, "opacity": 0.8,
                    "line": {"width": 1, "color": "white"}},
        )  # fmt: skip
    done = [p for p in info.points if p.heldout_loss is not None]
    figure.add_scatter(
        x=[shown(info.cost, p.finished_cost(info.cost)) for p in done],
        y=[drawn(p.heldout_loss) for p in done],
        error_y={"array": [p.heldout_se or 0.0 for p in done], "thickness": 1},
        mode="markers", name="finished, held-out",
        text=[_hover(info, p) for p in done], hoverinfo="text",
        marker={"symbol": "circle-open", "size": 14, "color": "#1f2933", "line": {"width": 1.5}},
    )  # fmt: skip
    for trial, symbol, name in (
        (info.best, "star", "best"),
        (info.best_uniform, "diamond", "best uniform"),
    ):
        point = info.point(trial)
        if point is not None:
            figure.add_scatter(
                x=[shown(info.cost, point.finished_cost(info.cost))],
                y=[drawn(point.heldout_loss)], mode="markers",
                name=name, text=[_hover(info, point)], hoverinfo="text",
                marker={"symbol": symbol, "size": 15, "color": "#f0b429",
                        "line": {"width": 1.5, "color": "#1f2933"}},
            )  # fmt: skip
    if info.axis.limit is not None:
        figure.add_vline(
            shown(info.cost, info.axis.limit), line={"dash": "dot", "color": "#9aa5b1"},
            annotation_text="budget", annotation_position="bottom left",
        )  # fmt: skip
    figure.update_layout(LAYOUT, height=520)
    figure.update_xaxes(title=title_of(info.cost, info.source))
    figure.update_yaxes(title=axis_title(info.metric), type="log", minor_showgrid=True)
    return figure


def _growth_figure(growth: Growth) -> Any:
    graph = optional("plotly.graph_objects")
    figure = graph.Figure()
    figure.add_scatter(
        x=list(range(1, len(growth.shares) + 1)), y=list(growth.shares), mode="lines",
        line={"color": "#0072b2", "width": 2, "shape": "hv"}, name="hypervolume",
    )  # fmt: skip
    figure.update_layout(LAYOUT, height=260, showlegend=False)
    figure.update_xaxes(title="told trials")
    figure.update_yaxes(title="share of the box")
    return figure


def _hover(info: FrontInfo, point: Point) -> str:
    name = short_name(info.metric)
    lines = [
        f"<b>trial {point.trial}</b> · {point.family}",
        f"from {point.origin}",
        f"searched: {megabytes(point.weight_bytes)} MB, {name} {number(point.loss)}",
    ]
    if info.cost != WEIGHT_BYTES:
        lines.append(f"{info.cost}: {format_cost(info.cost, point.cost)} ({info.source})")
    if point.heldout_loss is not None:
        lines.append(
            f"finished: {megabytes(point.file_bytes)} MB, held-out {name} "
            f"{number(point.heldout_loss)} ± {number(point.heldout_se)}, "
            f"perplexity {number(point.perplexity, 3)}"
        )
    return "<br>".join(lines)


def _bits_figure(bits: BitsMap) -> Any:
    graph = optional("plotly.graph_objects")
    figure = graph.Figure(
        graph.Heatmap(
            z=bits.bits, x=list(range(bits.blocks)), y=list(bits.roles), text=bits.tokens,
            colorscale="Viridis", zmin=0,
            xgap=2, ygap=2, colorbar={"title": {"text": "bits a weight"}, "thickness": 12},
            hovertemplate="block %{x} · %{y}<br>%{text}<br>%{z:.2f} bits a weight<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(LAYOUT, height=120 + 34 * len(bits.roles))
    figure.update_layout(margin={"l": 100})
    figure.update_xaxes(title="decoder block", showgrid=False, dtick=max(1, bits.blocks // 16))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure
