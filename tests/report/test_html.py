"""The HTML report."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from autocomp.report.bits import BitsMap
from autocomp.report.html import render_html

BITS = BitsMap(
    roles=("q_proj", "up_proj"),
    blocks=2,
    bits=((4.25, 0.0), (3.25, None)),
    tokens=(("gptq-w4g64", "dropped"), ("gptq-w3g64", "")),
    outside=(("model.embed_tokens", "rtn-w8g64", 8.25),),
)


class Tags(HTMLParser):
    """Counts tags and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.fetched += [value for key, value in attrs if key in ("src", "href")]


def page(info, tmp_path, bits=None) -> tuple[str, Tags]:
    path = tmp_path / "report" / "front.html"
    render_html(info, path, bits)
    text = path.read_text("utf-8")
    tags = Tags()
    tags.feed(text)
    assert [item.name for item in path.parent.iterdir()] == ["front.html"]
    return text, tags


def test_report_is_self_contained(info, tmp_path):
    text, tags = page(info, tmp_path, BITS)
    assert tags.fetched == []
    assert "Plotly.newPlot" in text
    assert tags.tags.count("table") == 3


def test_report_shows_front_bits_families_and_timings(info, tmp_path):
    text, _ = page(info, tmp_path, BITS)
    for heading in (
        "Front",
        "Bits of the best plan",
        "Families at equal cost",
        "Time and memory",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert re.search(r"<b>0\.3300</b><span>held-out KL of the best", text)
    assert "<b>0.60×</b>" in text
    assert "rtn-w8g64" in text
    assert "gptq-w3g64" in text


def test_report_names_the_metric_and_the_winners_curse(by_error, tmp_path):
    text, _ = page(by_error, tmp_path)
    assert "held-out task_error of the best (trial 3)" in text
    assert "<th>searched task_error</th>" in text
    assert "flatters its task_error by 0.0123" in text


def test_report_draws_another_cost_and_the_growth_of_the_front(by_time, info, tmp_path):
    text, _ = page(by_time, tmp_path)
    assert "<h2>Growth of the front</h2>" in text
    assert "<th>decoding a token, ms (modelled)</th>" in text
    assert "decode_ms: 0.08 ms (modelled)" in text
    assert "Growth of the front" not in page(info, tmp_path)[0]


def test_a_loss_below_its_floor_is_drawn(info, tmp_path):
    points = tuple(replace(p, loss=-1e-6) if p.trial == 3 else p for p in info.points)
    text, _ = page(replace(info, points=points), tmp_path)
    assert "1e-05" in text


def test_names_are_escaped(info, tmp_path):
    text, _ = page(info, tmp_path)
    assert "<script>alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_sections_without_data_are_left_out(empty, tmp_path):
    text, _ = page(empty, tmp_path)
    assert "Bits of the best plan" not in text
    assert "Time and memory" not in text
