"""Generates the Grafana dashboard: classic JSON, as dashboard sidecars load it.

    python -m tools.dashboard > helm/trace-sidecar/dashboards/trace-sidecar.json

Needs grafana-foundation-sdk in the version named in tests/e2e/test_dashboard.py, which fails when
the committed file is not this program's output. panels.py defines what the dashboard shows.
"""

import sys

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, table
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import timeseries as lines
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.panel import GREY, SEVERITIES, STATES, Panel, Query
from tools.panels import ROWS

UID = "trace-sidecar"
# The chart replaces the address with its value prometheusRule.runbookUrl.
RUNBOOKS = "https://github.com/scaleapi/trace-sidecar/blob/main/docs/runbooks.md"
DOCS = "https://github.com/scaleapi/trace-sidecar/blob/main/docs"
_DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = {"stat": 4, "states": 8, "lines": 8, "stack": 8, "table": 8}
_ALL = model.VariableOption(selected=True, text="All", value="$__all")
# Grafana asks once per step, and makes one annotation of steps that follow each other. Within two
# minutes there are two scrapes, even if they are a minute apart.
_STEP = "30s"
_RESTARTED = Query("sum(changes(process_start_time_seconds{}[2m]) and queue_limit_bytes{}) > 0")
# In pixels. What has none gets the rest: the name of the pod.
_WIDTH = {"Namespace": 100, "Upstream": 80, "Reason": 105, "Outcome": 115, "Severity": 85}
_VALUE_WIDTH = 100

_Built = stat.Panel | lines.Panel | table.Panel | statetimeline.Panel


class _Annotation(model.AnnotationQuery):
    """The data source's own properties, which the SDK does not know."""

    def build(self) -> "_Annotation":
        """Be a builder, as well."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return the JSON."""
        more = {"step": _STEP, "titleFormat": "Sidecars restarted", "tagKeys": ""}
        return super().to_json() | more


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
        .annotation(
            _Annotation(
                name="Restarts",
                datasource=_DATASOURCE,
                icon_color="orange",
                expr=_RESTARTED.expr,
            )
        )
        .link(_link("Runbooks", RUNBOOKS))
        .link(_link("Metrics", f"{DOCS}/metrics.md"))
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


def _link(title: str, url: str) -> build.DashboardLink:
    link = build.DashboardLink(title).type(model.DashboardLinkType.LINK)
    return link.url(url).icon("doc").target_blank(target_blank=True)


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


def _panel(panel: Panel) -> _Built:
    made: _Built
    match panel.kind:
        case "stat":
            made = _stat(panel)
        case "states":
            made = _states()
        case "table":
            made = _table(panel)
        case _:
            made = _lines(panel)
    made.title(panel.title).description(panel.help).datasource(_DATASOURCE).unit(panel.unit)
    made.height(_HEIGHT[panel.kind]).span(panel.width)
    made.thresholds(_thresholds(panel))
    if panel.alerts:
        made.links(
            [_link(f"Runbook: {name}", f"{RUNBOOKS}#{name.lower()}") for name in panel.alerts]
        )
    if panel.none:
        made.no_value(panel.none)
    for at, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + at))
        target.datasource(_DATASOURCE)
        if query.legend:
            target.legend_format(query.legend)
        if panel.kind in {"stat", "table"}:
            target.instant()
        else:
            target.range()
        if panel.kind == "table":
            target.format(PromQueryFormat.TABLE)
        made.with_target(target)
    return made


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .decimals(0 if panel.unit == "locale" else 1)
        .color_mode(shared.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .text_mode(shared.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )


def _legend(*, shown: bool) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(shared.LegendDisplayMode.LIST)
    return legend.placement(shared.LegendPlacement.BOTTOM).show_legend(show_legend=shown)


def _lines(panel: Panel) -> lines.Panel:
    made = (
        lines.Panel()
        .min(0)
        .fill_opacity(10)
        .line_width(1)
        .show_points(shared.VisibilityMode.NEVER)
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .legend(_legend(shown=True))
        .tooltip(
            common.VizTooltipOptions()
            .mode(shared.TooltipDisplayMode.MULTI)
            .sort(shared.SortOrder.DESCENDING)
        )
    )
    if panel.kind == "stack":
        made.fill_opacity(60).stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL))
    if panel.soft_max is not None:
        made.axis_soft_max(panel.soft_max)
    if panel.line is not None:
        style = common.GraphThresholdsStyleConfig()
        made.thresholds_style(style.mode(shared.GraphTresholdsStyleMode.DASHED))
    for at, query in enumerate(panel.queries):
        if query.dashed:
            made.override_by_query(chr(ord("A") + at), _dashed())
    for name, color in _colors(panel).items():
        made.override_by_name(name, [_fixed(color)])
    return made


def _colors(panel: Panel) -> dict[str, str]:
    """Return the color of each series by the text of its legend."""
    found = dict(panel.colors)
    for query in panel.queries:
        found |= query.colors()
    return found


def _fixed(color: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def _dashed() -> list[model.DynamicConfigValue]:
    return [
        model.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
        model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]}),
    ]


def _states() -> statetimeline.Panel:
    shown: dict[str, model.ValueMappingResult] = {
        str(number): model.ValueMappingResult(text=name, color=color, index=number)
        for number, (name, color) in enumerate(STATES)
    }
    return (
        statetimeline.Panel()
        .mappings([model.ValueMap(options=shown)])
        .merge_values(merge_values=True)
        .show_value(shared.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .legend(_legend(shown=True))
    )


def _table(panel: Panel) -> table.Panel:
    headers = {**({"Value": panel.value} if panel.value else {}), **panel.columns}
    hidden = ["Time"] if panel.value else ["Time", "Value"]
    order = {label: at for at, label in enumerate(headers)}
    columns = model.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": dict.fromkeys(hidden, True),
            "indexByName": order,
            "renameByName": headers,
        },
    )
    made = table.Panel().with_transformation(columns).cell_height(shared.TableCellHeight.SM)
    if panel.value:
        first = common.TableSortByFieldState().display_name(panel.value)
        made.sort_by([first.desc(desc=not panel.least_first)])
        value = [
            _width(_WIDTH.get(panel.value, _VALUE_WIDTH)),
            model.DynamicConfigValue("custom.align", "left"),
        ]
        if panel.unit == "locale":
            value.append(model.DynamicConfigValue("decimals", 0))
        made.override_by_name(panel.value, value + (_cell_color() if panel.steps else []))
    for header in panel.columns.values():
        # Else a cell without a text would say what an empty panel says.
        cell = [model.DynamicConfigValue("noValue", "-")]
        if header in _WIDTH:
            cell.append(_width(_WIDTH[header]))
        made.override_by_name(header, cell)
    if panel.value == "Severity":
        made.override_by_name("Severity", [_severities(), *_cell_color()])
        link = {"title": "Runbook", "url": f"{RUNBOOKS}#${{__value.raw}}", "targetBlank": True}
        made.override_by_name("Alert", [model.DynamicConfigValue("links", [link])])
    return made


def _width(pixels: int) -> model.DynamicConfigValue:
    return model.DynamicConfigValue("custom.width", pixels)


def _cell_color() -> list[model.DynamicConfigValue]:
    options = {"type": "color-background", "mode": "basic"}
    return [model.DynamicConfigValue("custom.cellOptions", options)]


def _severities() -> model.DynamicConfigValue:
    shown = {
        str(number): {"text": name, "color": color, "index": number}
        for number, (name, color) in enumerate(SEVERITIES, 1)
    }
    return model.DynamicConfigValue("mappings", [{"type": "value", "options": shown}])


def _thresholds(panel: Panel) -> build.ThresholdsConfig:
    """Return the steps; before the first one, when nothing is known, a stat is grey."""
    nothing = GREY if panel.kind in {"stat", "states"} else "transparent"
    steps = [model.Threshold(value=None, color=nothing)]
    steps += [model.Threshold(value=value, color=color) for value, color in panel.steps]
    if panel.line is not None:
        steps.append(model.Threshold(value=panel.line, color="orange"))
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    encoded = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(dashboard().build())
    sys.stdout.write(encoded + "\n")
