"""The front as a PNG."""

from pathlib import Path

from autocomp.core.cost import shown, title_of
from autocomp.core.metric import positive
from autocomp.report.front import FrontInfo, Point
from autocomp.report.palette import colours, optional
from autocomp.report.table import axis_title, describe, drawn


def render_png(info: FrontInfo, path: Path) -> None:
    """Draw cost against loss (log scale): trials by family, the front, finished plans, budget.

    Below it the hypervolume of the front after every told trial.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    figure_class = optional("matplotlib.figure").Figure
    optional("matplotlib.backends.backend_agg")
    growth = info.axis.growth
    figure = figure_class(figsize=(8, 6.5 if growth else 5), dpi=150, layout="constrained")
    axes, *below = figure.subplots(
        2 if growth else 1, squeeze=False, height_ratios=[3, 1] if growth else [1]
    )[:, 0]
    for family, colour in colours(p.family for p in info.points).items():
        members = [p for p in info.points if p.family == family]
        axes.scatter(
            *_searched(info, members), s=22, color=colour, alpha=0.75, label=family, zorder=3
        )
    axes.step(
        *_searched(info, [p for p in info.points if p.on_front]),
        where="post", color="#444444", linewidth=1, zorder=2, label="front (searched)",
    )  # fmt: skip
    done = [p for p in info.points if p.heldout_loss is not None]
    if done:
        axes.errorbar(
            [shown(info.cost, p.finished_cost(info.cost)) for p in done],
            [drawn(p.heldout_loss) for p in done],
            yerr=[p.heldout_se or 0.0 for p in done],
            fmt="o", mfc="none", color="black", ms=8, capsize=3, zorder=4,
            label="finished, held-out",
        )  # fmt: skip
    for trial, marker, label in (
        (info.best, "*", "best"),
        (info.best_uniform, "D", "best uniform"),
    ):
        point = info.point(trial)
        if point is not None:
            axes.plot(
                shown(info.cost, point.finished_cost(info.cost)), drawn(point.heldout_loss),
                marker, ms=13 if marker == "*" else 8,
                color="black", ls="none", zorder=5, label=label,
            )  # fmt: skip
    if info.axis.limit is not None:
        axes.axvline(shown(info.cost, info.axis.limit), color="#999999", ls="--", lw=1)
    if info.points:
        axes.set_yscale("log")
        plain = optional("matplotlib.ticker").FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(plain)
    axes.set_xlabel(title_of(info.cost, info.source))
    axes.set_ylabel(axis_title(info.metric))
    axes.set_title(describe(info.settings), fontsize=8, loc="left")
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(which="both", color="#eeeeee", zorder=0)
    axes.legend(fontsize=8, frameon=False)
    for curve, lower in zip([growth] if growth else [], below, strict=True):
        lower.step(range(1, len(curve.shares) + 1), curve.shares, where="post", color="#444444")
        lower.set_xlabel("told trials")
        lower.set_ylabel("hypervolume,\nshare of box")
        lower.tick_params(labelsize=8)
        lower.grid(color="#eeeeee")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _searched(info: FrontInfo, points: list[Point]) -> tuple[list[float], list[float]]:
    return [shown(info.cost, p.cost) for p in points], [positive(p.loss) for p in points]
