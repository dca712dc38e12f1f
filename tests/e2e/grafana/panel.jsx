// One panel, drawn by the parts that Grafana itself is built from.
import { useEffect, useState } from 'react';
import {
  dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, LoadingState,
} from '@grafana/data';
import { BigValue, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { configured, unknown } from './config.js';
import { Timeline } from './timeline.jsx';

function Stat({ panel, series, theme, width, height }) {
  const { options } = panel;
  const values = () => getFieldDisplayValues({
    data: series, theme, fieldConfig: panel.fieldConfig, reduceOptions: options.reduceOptions,
    replaceVariables: (text) => text, sparkline: options.graphMode !== 'none', timeZone: 'utc',
  });
  return (
    <VizRepeater
      getValues={values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, count, alignmentFactors, ...size }) => (
        <BigValue
          {...size}
          value={value.display}
          sparkline={value.sparkline}
          count={count}
          alignmentFactors={alignmentFactors}
          theme={theme}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          text={options.text}
        />
      )}
      width={width}
      height={height}
      source={series}
      itemSpacing={3}
      renderCounter={1}
      autoGrid
      orientation={options.orientation}
    />
  );
}

function Lines({ panel, series, range, width, height, notes, theme }) {
  const mark = (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.setLineDash([4, 4]);
    for (const { at, color } of notes) {
      ctx.strokeStyle = theme.visualization.getColorByName(color);
      const x = Math.round(plot.valToPos(at, 'x', true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };
  return (
    <TimeSeries
      frames={series}
      structureRev={1}
      width={width}
      height={height}
      timeRange={range}
      timeZone="utc"
      legend={panel.options.legend}
      options={panel.options}
      tweakScale={(scale) => scale}
      tweakAxis={(axis) => axis}
    >
      {(config) => {
        config.addHook('draw', mark);
        return null;
      }}
    </TimeSeries>
  );
}

function isNothing(value) {
  return value === null;
}

function Drawn({ panel, series, ...rest }) {
  if (panel.type === 'stat') return <Stat panel={panel} series={series} {...rest} />;
  if (series.every((frame) => frame.fields.every(({ type, values }) => type === 'time' || values.every(isNothing)))) {
    const text = panel.fieldConfig.defaults.noValue || 'No data';
    return <div className="nothing" style={{ height: '100%', display: 'grid', placeItems: 'center' }}>{text}</div>;
  }
  if (panel.type === 'state-timeline') return <Timeline panel={panel} series={series} {...rest} />;
  if (panel.type === 'timeseries') return <Lines panel={panel} series={series} {...rest} />;
  if (panel.type !== 'table') throw new Error(`this page draws no ${panel.type}`);
  const { options } = panel;
  return (
    <TableNG
      data={series[options.frameIndex ?? 0]}
      width={rest.width}
      height={rest.height}
      sortBy={options.sortBy}
      cellHeight={options.cellHeight}
      noHeader={options.showHeader === false}
      fieldConfig={panel.fieldConfig}
      structureRev={1}
    />
  );
}

function Body({ panel, prometheus, report, ...rest }) {
  const [series, setSeries] = useState();
  useEffect(() => {
    const load = async () => {
      const several = panel.targets.length > 1;
      const asked = panel.targets.map((target) => prometheus.frames(target, rest.width, several));
      setSeries(await configured(panel, (await Promise.all(asked)).flat(), rest.theme));
    };
    for (const name of unknown(panel)) report(panel, `unknown property ${name}`);
    load().catch((error) => report(panel, error.message)).finally(() => report(panel));
  }, []);
  return series ? <Drawn panel={panel} series={series} range={prometheus.range} {...rest} /> : null;
}

export function Panel({ panel, box, ...rest }) {
  return (
    <section data-title={panel.title} data-kind={panel.type} style={{ position: 'absolute', ...box }}>
      <PanelChrome
        title={panel.title}
        description={panel.description}
        width={box.width}
        height={box.height}
        loadingState={LoadingState.Done}
      >
        {(width, height) => <Body panel={panel} width={width} height={height} {...rest} />}
      </PanelChrome>
    </section>
  );
}

export function span(minutes, until) {
  const to = dateTime(until * 1000);
  const from = dateTime(to.valueOf() - minutes * 60_000);
  return { from, to, raw: { from, to } };
}
