// A state timeline. Grafana publishes no part for it: the colors and texts are those of its field
// configuration, the drawing is our own.
import { getFieldDisplayName } from '@grafana/data';
import { VizLegend } from '@grafana/ui';

const LABELS = 90;

function runs(frame, step) {
  const [times, values] = frame.fields;
  const found = [];
  times.values.forEach((at, index) => {
    const value = values.values[index];
    const last = found.at(-1);
    if (last && last.value === value && at - last.to <= step) last.to = at + step;
    else found.push({ value, from: at, to: at + step });
  });
  return found.map((run) => ({ ...run, shown: values.display(run.value) }));
}

export function Timeline({ panel, series, range, width, height, theme }) {
  const from = range.from.valueOf();
  const scale = (width - LABELS) / (range.to.valueOf() - from);
  const rows = series.map((frame) => ({
    name: getFieldDisplayName(frame.fields[1], frame, series),
    runs: runs(frame, frame.fields[0].config.interval),
  }));
  const states = new Map(rows.flatMap((row) => row.runs.map(({ shown }) => [shown.text, shown.color])));
  const items = [...states].map(([label, color]) => ({ label, color, yAxis: 1 }));
  const legend = panel.options.legend.showLegend ? 24 : 0;
  const each = (height - legend) / rows.length;
  return (
    <div>
      {rows.map((row) => (
        <div key={row.name} style={{ position: 'relative', height: each }}>
          <span style={{ lineHeight: `${each}px` }}>{row.name}</span>
          {row.runs.map((run) => (
            <div
              key={run.from}
              className="state"
              style={{
                position: 'absolute', top: each * 0.05, height: each * 0.9, overflow: 'hidden',
                left: LABELS + Math.max(run.from - from, 0) * scale,
                width: Math.max((Math.min(run.to, range.to.valueOf()) - Math.max(run.from, from)) * scale, 0),
                lineHeight: `${each * 0.9}px`, textAlign: 'center', whiteSpace: 'nowrap',
                background: run.shown.color, color: theme.colors.getContrastText(run.shown.color),
              }}
            >
              {run.shown.text}
            </div>
          ))}
        </div>
      ))}
      {legend > 0 && <VizLegend placement="bottom" displayMode="list" items={items} />}
    </div>
  );
}
