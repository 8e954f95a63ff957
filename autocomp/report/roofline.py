"""Plans under the roof of a device: operations a second against operations a byte.

Reference: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autocomp.report.palette import optional

if TYPE_CHECKING:
    from autocomp.cost import Device


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """A plan under a roof.

    Args:
        trial: Its number.
        intensity: Operations a byte that is read.
        flops_per_s: Operations a second.
        label: What is said of it, one line.
    """

    trial: int
    intensity: float
    flops_per_s: float
    label: str


@dataclass(frozen=True, slots=True)
class RooflineInfo:
    """The roof of a device and the plans under it.

    Args:
        device: The device.
        work: Batch, context and source of the times, for people.
        points: The plans.
    """

    device: "Device"
    work: str
    points: tuple[RooflinePoint, ...]

    @property
    def ridge(self) -> float:
        """Operations a byte at which memory and arithmetic take equally long."""
        return self.device.peak_flops_per_s / self.device.memory_bandwidth_bytes_per_s

    def roof(self, intensity: float) -> float:
        """Return the most operations a second at an intensity."""
        return min(
            self.device.peak_flops_per_s, intensity * self.device.memory_bandwidth_bytes_per_s
        )


def roofline_info(device: "Device", rows: Iterable[Mapping[str, Any]]) -> RooflineInfo | None:
    """Return the plans of efficiency rows under a device's roof; ``None`` where none has times.

    Args:
        device: The device that their times are of.
        rows: ``trial`` and the JSON of its :class:`~autocomp.evaluate.record.Efficiency`.
    """
    timed = [(row["trial"], row["speed"]) for row in rows if row.get("speed")]
    if not timed:
        return None
    points = tuple(
        RooflinePoint(
            trial,
            speed["intensity"],
            speed["flops_per_s"],
            f"trial {trial}: {speed['decode_ms']:.4g} ms ({speed['source']}), "
            f"{speed['speedup']:.2f}× the base, MFU {speed['mfu']:.2%}",
        )
        for trial, speed in timed
    )
    first = timed[0][1]
    sources = ", ".join(dict.fromkeys(speed["source"] for _, speed in timed))
    work = f"decoding at batch {first['batch']}, context {first['context']}, {sources}"
    return RooflineInfo(device, work, points)


def roofline_figure(info: RooflineInfo, layout: Mapping[str, Any]) -> Any:
    """Return the plotly figure of a roof and its plans.

    Args:
        info: What to draw.
        layout: Of all figures of the page.
    """
    graph = optional("plotly.graph_objects")
    figure = graph.Figure()
    intensities = [point.intensity for point in info.points]
    ends = (0.3 * min(*intensities, info.ridge), 3 * max(*intensities, info.ridge))
    bends = [ends[0], info.ridge, ends[1]]
    figure.add_scatter(
        x=bends, y=[info.roof(x) for x in bends], mode="lines", name=info.device.name,
        line={"color": "#7b8794", "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=intensities, y=[point.flops_per_s for point in info.points], mode="markers",
        name="finished plans", text=[point.label for point in info.points], hoverinfo="text",
        marker={"color": "#0072b2", "size": 9, "line": {"width": 1, "color": "white"}},
    )  # fmt: skip
    figure.update_layout(layout, height=380)
    figure.update_xaxes(title="operations a byte", type="log", minor_showgrid=True)
    figure.update_yaxes(title="operations a second", type="log", minor_showgrid=True)
    return figure
