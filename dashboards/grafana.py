"""A board in the form that Grafana reads (schema 41, Grafana 11.6 and later)."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.board import Board, Kind, Panel, Variable

SOURCE = models.DataSourceRef("prometheus", "${datasource}")
ALL = models.VariableOption(selected=True, text=["All"], value=["$__all"])

Built = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel


def written(board: Board) -> str:
    """The text of its file."""
    return (
        json.dumps(dashboard_of(board).build(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def dashboard_of(board: Board) -> dashboard.Dashboard:
    whole = (
        dashboard.Dashboard(board.title)
        .uid(f"cortex-{board.name}")
        .description(board.description)
        .tags(["cortex"])
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("Cortex")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["cortex"])
            .as_dropdown(True)
            .keep_time(True)
        )
    )
    for variable in board.variables:
        whole.with_variable(_choice(variable))
    number = 0
    for row in board.rows:
        whole.with_row(dashboard.Row(row.title))
        height = 4 if all(panel.kind == "figure" for panel in row.panels) else 8
        for panel in row.panels:
            number += 1
            whole.with_panel(_panel(panel).id(number).height(height))
    return whole


def _choice(variable: Variable) -> dashboard.QueryVariable:
    choice = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .description(variable.meaning)
        .datasource(SOURCE)
        .query(f"label_values({variable.metric}, {variable.name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(ALL)
    )
    return choice.all_value(variable.everything) if variable.everything else choice


def _panel(panel: Panel) -> Built:
    built = _BUILDERS[panel.kind](panel)
    built.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit).span(panel.width)
    low, high = panel.bounds if panel.kind != "heat" else (None, None)
    if low is not None:
        built.min(low)
    if high is not None:
        built.max(high)
    for letter, query in zip(string.ascii_uppercase, panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend or "__auto")
        target = target.instant() if panel.kind == "figure" else target.range()
        built.with_target(target.format(PromQueryFormat.HEATMAP) if panel.kind == "heat" else target)
    if panel.limits:
        (_, first), *more = panel.limits
        steps = [models.Threshold(None, first), *(models.Threshold(value, color) for value, color in more)]
        built.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.words:
        words = {str(at): models.ValueMappingResult(text=word, color=color) for at, word, color in panel.words}
        built.mappings([models.ValueMap(words)])
    return built


def _lines(panel: Panel) -> timeseries.Panel:
    """Limits are drawn as dashed lines."""
    built = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            build.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if panel.limits:
        built.thresholds_style(build.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    return built


def _stack(panel: Panel) -> timeseries.Panel:
    return _lines(panel).fill_opacity(40).stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))


def _figure(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE if panel.limits else common.BigValueColorMode.NONE)
        .reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _heat(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heat.HeatmapColorMode.SCHEME)
            .scheme("Spectral")
            .reverse(True)
            .fill("dark-orange")
            .exponent(0.5)
            .steps(64)
        )
        .cell_gap(1)
        .show_legend()
    )


def _states(panel: Panel) -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
        .legend(
            build.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )


_BUILDERS: Mapping[Kind, Callable[[Panel], Built]] = {
    "lines": _lines,
    "stack": _stack,
    "figure": _figure,
    "heat": _heat,
    "states": _states,
}
