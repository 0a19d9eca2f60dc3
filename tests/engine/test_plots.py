"""Pictures are whole PNG files; an error leaves the earlier one as it was."""

import pytest

from engine.plots import loss_and_metric, picture

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_picture_is_a_png_file_of_the_size_asked_for(tmp_path):
    with picture(tmp_path / "a.png", 4, 2) as figure:
        figure.subplots().plot([1, 2], [3, 4])
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(PNG)
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (4 * 150, 2 * 150)


def test_an_error_while_drawing_leaves_the_earlier_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", 4, 2):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"earlier"


def test_loss_and_metric_have_an_axis_each_in_the_color_of_their_curve(tmp_path):
    with picture(tmp_path / "a.png", 4, 2) as figure:
        left, right = loss_and_metric(figure, [0, 1, 2], [9.0, 8.0, 7.0], [0.1, 0.2, 0.3])
    for axes, expected in ((left, [9.0, 8.0, 7.0]), (right, [0.1, 0.2, 0.3])):
        [curve] = axes.lines
        assert list(curve.get_ydata()) == expected
        assert curve.get_color() == axes.yaxis.label.get_color()
    assert left.lines[0].get_color() != right.lines[0].get_color()
