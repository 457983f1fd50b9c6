import pytest
import torch
from readable import assert_readable

from pynode import plot
from pynode.errors import InputError


def test_principal_plane_keeps_what_lies_in_a_plane():
    """Points of a plane in five dimensions keep their distances; the first axis has the larger variance."""
    flat = torch.randn(7, 4, 2, dtype=torch.float64) * torch.tensor([5.0, 1.0])
    directions = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q
    z = plot.principal_plane(flat @ directions.T + 3.0)
    assert z.shape == (7, 4, 2)
    torch.testing.assert_close(
        torch.cdist(z.reshape(-1, 2), z.reshape(-1, 2)), torch.cdist(flat.reshape(-1, 2), flat.reshape(-1, 2))
    )
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert z[..., 0].var() > z[..., 1].var()


def test_principal_plane_needs_two_features():
    with pytest.raises(InputError, match=r"2 features or more, got \(3, 4, 1\)"):
        plot.principal_plane(torch.zeros(3, 4, 1))


def test_history_draws_every_line_and_takes_a_logarithm_over_decades():
    figure = plot.history({"loss": {"a": [10.0, 1.0, 0.01], "b": [1.0, 1.0]}, "accuracy": {"a": [0.5, 0.9, 1.0]}})
    loss, accuracy = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[10.0, 1.0, 0.01], [1.0, 1.0]]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert (loss.get_title(), accuracy.get_title()) == ("loss", "accuracy")


def test_history_has_one_legend_that_hides_nothing_and_one_colour_for_a_model():
    figure = plot.history({"loss": {"a": [1.0], "b": [2.0]}, "NFE": {"b": [14.0]}})
    loss, evaluations = figure.axes
    assert evaluations.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().x0 > evaluations.get_window_extent().x1
    low, high = evaluations.get_xlim()
    assert [tick for tick in evaluations.get_xticks() if low <= tick <= high] == [1]


def test_flow_draws_one_path_per_sample_in_the_colour_of_its_class():
    z = torch.randn(6, 3, 2, requires_grad=True)
    figure = plot.flow({"NODE": z}, torch.tensor([1, 0, 1]))
    lines = figure.axes[0].lines
    first, second, third = (line.get_color() for line in lines)
    assert first == third != second
    torch.testing.assert_close(torch.tensor(lines[1].get_xydata(), dtype=torch.float32), z[:, 1].detach())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["start", "end", "class 0", "class 1"]


def test_fit_trajectories_and_phase_draw_what_they_are_given():
    x = torch.linspace(0, 1, 5).unsqueeze(1)
    axis = plot.fit({"model": (x, x**2)}, (x[:2], x[:2])).axes[0]
    assert list(axis.lines[0].get_ydata()) == (x**2).flatten().tolist()
    assert len(axis.collections[0].get_offsets()) == 2
    axis = plot.trajectories({"model": (x.flatten(), torch.stack([x, 2 * x], 1))}).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [x.flatten().tolist(), (2 * x).flatten().tolist()]
    curve = torch.randn(5, 2)
    axis = plot.phase({"data": curve, "fit": 2 * curve}).axes[0]
    torch.testing.assert_close(torch.tensor(axis.lines[1].get_xydata(), dtype=torch.float32), 2 * curve)


def test_density_on_grid_is_the_density_in_the_middle_of_the_cells():
    """Of a normal distribution with its centre off the grid's: the values, the axes, and the share on the grid."""
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.4, 0.7])
    trained = torch.distributions.Normal(mean.clone().requires_grad_(), std)
    density, integral = plot.density_on_grid(lambda x: trained.log_prob(x).sum(-1), 2.0, n=160)  # in more than one part
    assert density.shape == (160, 160)
    assert not density.requires_grad
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    side = 4 / 160
    at = torch.tensor([-2 + 2.5 * side, -2 + 70.5 * side])
    torch.testing.assert_close(density[2, 70], normal.log_prob(at).exp())
    marginals = torch.distributions.Normal(mean, std)
    share = (marginals.cdf(torch.tensor(2.0)) - marginals.cdf(torch.tensor(-2.0))).prod().item()
    assert share < 0.93
    assert integral == pytest.approx(share, abs=1e-4)


def test_densities_draws_a_row_for_each():
    torch.manual_seed(0)
    data, heat, paths = torch.randn(50, 2), torch.rand(20, 10), torch.randn(7, 5, 2)
    figure = plot.densities({"a": (data, heat, data + 1, paths), "b": (data, heat, data, paths)}, extent=(-2, 2, -1, 1))
    assert len(figure.axes) == 8 + 2  # colour bars
    points, image, samples, way = figure.axes[:4]
    torch.testing.assert_close(torch.tensor(points.collections[0].get_offsets().data, dtype=torch.float32), data)
    torch.testing.assert_close(torch.tensor(samples.collections[0].get_offsets().data, dtype=torch.float32), data + 1)
    assert image.images[0].get_array().shape == (10, 20)  # rows are y
    assert image.images[0].get_extent() == [-2, 2, -1, 1]
    assert len(way.lines) == 5
    torch.testing.assert_close(torch.tensor(way.lines[2].get_xydata(), dtype=torch.float32), paths[:, 2])
    part = plot.densities({"a": (data, heat, data, paths)}, extent=(-2, 2, -1, 1), shown=(-1, 1, 0, 1)).axes[1]
    assert (part.get_xlim(), part.get_ylim()) == ((-1, 1), (0, 1))
    assert part.images[0].get_extent() == [-2, 2, -1, 1]


def test_images_lays_them_out_in_lines():
    x = torch.rand(5, 1, 3, 2)
    figure = plot.images({"some": x}, columns=3)
    sheet = torch.tensor(figure.axes[0].images[0].get_array().data)
    assert sheet.shape == (7, 8)
    torch.testing.assert_close(sheet[:3, 3:5], x[1, 0])
    torch.testing.assert_close(sheet[4:, :2], x[3, 0])
    assert (sheet[3] == 1).all()


def test_bands_hold_the_shares_of_the_draws_that_they_say():
    t = torch.linspace(0, 1, 3)
    draws = torch.arange(101.0).unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0])
    draws[:50, 2] = torch.nan  # draws that a time has not
    points = {"a": {"seen": (t[:2], t[:2]), "left out": (t[2:], t[2:])}}
    figure = plot.bands({"a": (t, draws)}, points, truth={"a": (t, 2 * t)}, since=0.5, xlabel="year")
    axis = figure.axes[0]
    assert list(axis.lines[0].get_ydata()) == [50.0, 100.0, 225.0]
    assert list(axis.lines[1].get_ydata()) == [0.0, 1.0, 2.0]
    wide, narrow, seen, left_out = axis.collections
    for band, low, high in ((wide, 5.0, 95.0), (narrow, 25.0, 75.0)):
        first = band.get_paths()[0].vertices
        first = first[first[:, 0] == 0][:, 1]
        assert (first.min(), first.max()) == (low, high)
    assert (len(seen.get_offsets()), len(left_out.get_offsets())) == (2, 1)
    assert axis.get_xlabel() == "year"
    assert axis.get_ylabel() == "a"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[2:] == ["median", "seen", "left out", "truth", "beyond what was seen"]
    assert axis.lines[1].get_zorder() > max(c.get_zorder() for c in axis.collections)


@pytest.mark.parametrize("shape", [(3, 10, 2), (4, 3, 10, 2)])
def test_paths_draw_each_model_in_its_row_and_part_where_extrapolation_begins(shape):
    truth, draws = torch.randn(3, 10, 2), torch.randn(shape)
    figure = plot.paths({"RNN": torch.randn(3, 10, 2), "ODE": draws}, truth, [truth[i, :4] for i in range(3)], split=6)
    assert len(figure.axes) == 6
    axis = figure.axes[3]
    assert axis.get_title() == "ODE, path 1"
    first = draws.reshape(-1, 3, 10, 2)[0, 0]
    assert len(axis.lines) == 1 + 2 * draws.reshape(-1, 3, 10, 2).shape[0]
    found = [torch.tensor(line.get_xydata(), dtype=torch.float32) for line in axis.lines[:3]]
    for got, expected in zip(found, (truth[0], first[:6], first[5:]), strict=True):
        torch.testing.assert_close(got, expected)


def test_lines_marks_few_points_and_takes_a_logarithm_over_decades():
    x = torch.linspace(0, 1, 30)
    first, second = plot.lines(
        {"error": {"a": ((1, 2), (1.0, 1e-3)), "true": ((1, 2), (1.0, 1.0))}, "A": {"a": (x, x - 0.5)}}, xlabel="n"
    ).axes
    assert [list(line.get_ydata()) for line in first.lines] == [[1.0, 1e-3], [1.0, 1.0]]
    assert [line.get_color() == "black" for line in first.lines] == [False, True]
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    assert first.lines[1].get_zorder() > first.lines[0].get_zorder()  # the truth is above what it is compared to
    assert (first.lines[0].get_marker(), second.lines[0].get_marker()) == ("o", "None")
    assert first.get_xlabel() == "n"


def test_lines_of_one_label_have_one_colour_and_whole_abscissae_whole_ticks():
    a, b = ((1, 2, 3), (0.5, 0.5, 0.6)), ((1, 2, 3), (0.5, 0.5, 0.5))
    figure = plot.lines({"one": {"a": a, "b": b}, "other": {"b": b, "c": ((0.5, 1.0), (1.0, 2.0))}}, xlabel="rank")
    one, other = figure.axes
    assert one.lines[1].get_color() == other.lines[0].get_color() != one.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert all(tick == int(tick) for tick in one.get_xticks())
    assert not all(tick == int(tick) for tick in other.get_xticks())
    sizes = [line.get_markersize() for line in one.lines]
    assert sizes[0] > sizes[1]  # what is drawn first can be seen around what is drawn on it
    assert {line.get_markerfacecolor() for line in one.lines} == {"none"}


def test_points_of_the_plane_and_of_space():
    flat, solid, labels = torch.randn(4, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    plane, space = plot.points({"plane": flat, "space": solid}, labels).axes
    assert (plane.name, space.name) == ("rectilinear", "3d")
    assert (plane.get_title(), space.get_title()) == ("plane", "space")
    torch.testing.assert_close(torch.tensor(plane.collections[0].get_offsets()).float(), flat)
    assert len({tuple(c) for c in plane.collections[0].get_facecolors()}) == 2


def test_surface_of_a_function_on_the_plane():
    side, values = plot.on_grid(lambda x: x[:, :1] + 10 * x[:, 1:], 2.0, 5)
    torch.testing.assert_close(side, torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(values, side + 10 * side[:, None])
    figure = plot.surface({"model": (side, values)}, torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    (line,) = figure.axes[0].collections[1].get_paths()  # the contour of 0, x + 10 y = 0
    torch.testing.assert_close(line.vertices[:, 0], -10 * line.vertices[:, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class 0", "class 1"]


def test_phase_names_its_coordinates_and_marks_start_and_end():
    t = torch.linspace(0, 1, 30)
    figure = plot.phase({"data": torch.stack([t, t], 1), "fit": torch.stack([t, -t], 1)}, axes_names=("q, rad", "p"))
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("q, rad", "p")
    marks = {points.get_label(): points.get_offsets().data.tolist() for points in axis.collections}
    assert marks == {"start": [[0.0, 0.0]], "end": [[1.0, -1.0]]}


def test_many_panels_come_in_rows():
    line = (torch.arange(3.0), torch.randn(3, 2, 1))
    figure = plot.trajectories({str(i): line for i in range(5)})
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "2", "3", "4"]
    rows = [axis.get_subplotspec().rowspan.start for axis in figure.axes]
    assert rows == [0, 0, 0, 1, 1]


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("pynode.plot._style.available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r'figures need matplotlib.*pip install "pynode-sciml\[plot\]"'):
        plot.history({"loss": {"a": [1.0]}})


def test_one_value_is_a_visible_point():
    (axis,) = plot.history({"loss": {"a": [1.0]}}).axes
    assert axis.lines[0].get_marker() == "."


def test_panels_that_are_compared_have_one_scale():
    z, x = torch.randn(5, 3, 2), torch.linspace(0, 1, 5).unsqueeze(1)
    figures = [
        plot.flow({"a": z, "b": 10 * z}),
        plot.points({"a": z[0], "b": 10 * z[0]}, torch.tensor([0, 1, 0])),
        plot.fit({"a": (x, x), "b": (x, 10 * x)}, (x, x), (x, x)),
        plot.trajectories({"a": (x.flatten(), z[..., :1]), "b": (x.flatten(), 10 * z[..., :1])}),
    ]
    for figure in figures:
        first, second = figure.axes[:2]
        assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())


def drawn():
    """Each figure, of data that are there."""
    torch.manual_seed(0)
    z, x, labels = torch.randn(6, 4, 2), torch.linspace(0, 1, 6).unsqueeze(1), torch.tensor([0, 1, 0, 1])
    t, side = x.flatten(), torch.linspace(-1, 1, 5)
    return {
        "history": plot.history({"loss": {"a": [1.0], "b": [2.0]}, "NFE": {"a": [14.0]}}),
        "lines": plot.lines({"A(s)": {"true": (t, t), "a": (t, t)}}, xlabel="s"),
        "flow": plot.flow({"a": z, "b": z}, labels),
        "points": plot.points({"plane": z[0], "space": torch.randn(4, 3)}, labels),
        "surface": plot.surface({"a": (side, side + side[:, None])}, z[0], labels),
        "fit": plot.fit({"a": (x, x)}, (x, x), (x, x)),
        "trajectories": plot.trajectories({"a": (t, z[..., :1])}),
        "densities": plot.densities({"a": (z[0], torch.rand(5, 5), z[1], z)}, extent=(-2, 2, -2, 2)),
        "images": plot.images({"a": torch.rand(4, 1, 3, 3)}),
        "phase": plot.phase({"data": z[:, 0], "fit": z[:, 1]}),
        "bands": plot.bands({"hare": (t, torch.randn(9, 6))}, {"hare": {"seen": (t, t)}}),
        "paths": plot.paths({"a": torch.randn(2, 6, 2)}, torch.randn(2, 6, 2), [z[:, 0], z[:, 1]], split=3),
    }


@pytest.mark.slow
def test_every_figure_is_drawn_and_no_axis_is_empty_or_without_a_name(tmp_path):
    figures = drawn()
    assert set(figures) | {
        "COLOURS",
        "HOW_TO_GET",
        "available",
        "density_on_grid",
        "on_grid",
        "principal_plane",
    } == set(plot.__all__)
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert_readable(figure)


def test_an_empty_axis_and_one_without_a_name_are_seen():
    empty = plot.history({"loss": {"a": []}})
    with pytest.raises(AssertionError, match="empty"):
        assert_readable(empty)
    unnamed = plot.fit({"a": (torch.ones(2, 1), torch.ones(2, 1))}, (torch.ones(2, 1), torch.ones(2, 1)))
    unnamed.axes[0].set_xlabel("")
    with pytest.raises(AssertionError, match="no name"):
        assert_readable(unnamed)
