"""The PNG."""

import struct

from autocomp.report.png import render_png


def test_png_is_written(info, tmp_path):
    path = tmp_path / "new" / "front.png"
    render_png(info, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1200, 750)


def test_the_growth_of_the_front_is_drawn_below(by_time, tmp_path):
    render_png(by_time, tmp_path / "front.png")
    width, height = struct.unpack(">II", (tmp_path / "front.png").read_bytes()[16:24])
    assert (width, height) == (1200, 975)


def test_an_empty_front_can_be_drawn(empty, tmp_path):
    render_png(empty, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000
