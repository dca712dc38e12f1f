"""Generates the Grafana dashboard: classic JSON, as dashboard sidecars load it.

    python -m tools.dashboard > helm/trace-sidecar/dashboards/trace-sidecar.json

Needs grafana-foundation-sdk in the version named in tests/e2e/test_dashboard.py, which fails when
the committed file is not this program's output. panels.py defines what the dashboard shows.
"""

import sys

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.panels import ROWS, Panel

UID = "trace-sidecar"
_DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = {"stat": 4, "lines": 8, "stack": 8, "table": 8}
_ALL = model.VariableOption(selected=True, text="All", value="$__all")
_HIDDEN_COLUMNS = {"Time": True}


def dashboard() -> build.Dashboard:
    """Return the whole dashboard."""
    made = (
        build.Dashboard("Trace sidecar")
        .uid(UID)
        .description("The trace sidecars of agent pods: are we losing spans, is it late, and why?")
        .tags(["trace-sidecar", "agentex"])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(
            build.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("namespace", "label_values(trace_sidecar_build_info, namespace)"))
        .with_variable(
            _variable("pod", 'label_values(trace_sidecar_build_info{namespace=~"$namespace"}, pod)')
        )
    )
    number = 0
    for title, panels in ROWS:
        number += 1
        made.with_row(build.Row(title).id(number))
        for panel in panels:
            number += 1
            made.with_panel(_panel(panel).id(number))
    return made


def _variable(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_DATASOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        # Shorter than a list of a thousand names, and matches targets without the label.
        .all_value(".*")
        .current(_ALL)
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel | table.Panel:
    made: stat.Panel | timeseries.Panel | table.Panel
    match panel.kind:
        case "stat":
            made = _stat(panel)
        case "table":
            made = _table()
        case _:
            made = _lines(panel)
    made.title(panel.title).description(panel.help).datasource(_DATASOURCE).unit(panel.unit)
    made.height(_HEIGHT[panel.kind]).span(panel.width)
    made.thresholds(_thresholds(panel.bad))
    if panel.none:
        made.no_value(panel.none)
    for at, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + at))
        target.datasource(_DATASOURCE)
        if query.legend:
            target.legend_format(query.legend)
        if panel.kind in {"lines", "stack"}:
            target.range()
        else:
            target.instant()
        if panel.kind == "table":
            target.format(PromQueryFormat.TABLE)
        made.with_target(target)
    return made


def _stat(panel: Panel) -> stat.Panel:
    colored = panel.bad is not None
    mode = shared.BigValueColorMode.BACKGROUND if colored else shared.BigValueColorMode.NONE
    return (
        stat.Panel()
        .decimals(0)
        .color_mode(mode)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .min(0)
        .fill_opacity(10)
        .show_points(shared.VisibilityMode.NEVER)
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(
            common.VizLegendOptions()
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(shared.TooltipDisplayMode.MULTI)
            .sort(shared.SortOrder.DESCENDING)
        )
    )
    if panel.kind == "stack":
        made.fill_opacity(40).stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL))
    return made


def _table() -> table.Panel:
    columns = model.DataTransformerConfig(
        id_val="organize", options={"excludeByName": _HIDDEN_COLUMNS, "renameByName": {}}
    )
    return (
        table.Panel()
        .with_transformation(columns)
        .sort_by([common.TableSortByFieldState().display_name("Value").desc(desc=True)])
    )


def _thresholds(bad: float | None) -> build.ThresholdsConfig:
    steps = [model.Threshold(value=None, color="green")]
    if bad is not None:
        steps.append(model.Threshold(value=bad, color="red"))
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    encoded = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(dashboard().build())
    sys.stdout.write(encoded + "\n")
