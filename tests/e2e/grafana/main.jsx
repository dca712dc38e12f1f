// Draws the panels of a dashboard with the parts that Grafana publishes, from a real Prometheus.
//
// The address says how: prometheus (its URL), theme (dark, light), minutes and until (the time range and
// its end, in Unix seconds), scrape (seconds), and a value for each of the dashboard's variables. The result is in `window`: `done`;
// `faults`, which say of a panel what was wrong with it; `facts()`, which say what can be seen of each;
// `notes`, the number of annotations; and `health`, the theme's colors that say how something is.
import '@grafana/react-data-grid/lib/styles.css';
import 'uplot/dist/uPlot.min.css';
import { Component } from 'react';
import { createRoot } from 'react-dom/client';
import { createTheme, ThemeContext } from '@grafana/data';
import { config } from '@grafana/runtime';
import { GlobalStyles } from '@grafana/ui';
import { facts } from './facts.js';
import { Panel, span } from './panel.jsx';
import { Prometheus } from './query.js';

const COLUMNS = 24;
const ROW = 38;
const GAP = 8;
const MARGIN = 16;

const asked = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: asked.get('theme') } });
Object.assign(config, { theme2: theme, bootData: { user: { timezone: 'utc' }, settings: {} } });
window.faults = [];
window.facts = facts;
window.health = Object.fromEntries(
  ['green', 'yellow', 'orange', 'red'].map((name) => {
    const hex = theme.visualization.getColorByName(name);
    const channels = [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
    return [name, `rgb(${channels.join(', ')})`];
  }),
);
for (const kind of ['error', 'unhandledrejection']) {
  window.addEventListener(kind, ({ message, reason }) => {
    // The browser's way of saying "in the next frame".
    if (message?.startsWith('ResizeObserver loop')) return;
    window.faults.push(message ?? String(reason));
    window.done = true;
  });
}

class Guard extends Component {
  state = {};

  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidCatch(error) {
    this.props.report(this.props.panel, error.message);
  }

  render() {
    return this.state.error ? <pre>{String(this.state.error)}</pre> : this.props.children;
  }
}

function box({ x, y, w, h }, column) {
  return { left: x * column, top: y * ROW, width: w * column - GAP, height: h * ROW - GAP };
}

function Row({ panel, at }) {
  return <h2 style={{ position: 'absolute', ...at, fontSize: 16, lineHeight: '30px' }}>⌄ {panel.title}</h2>;
}

function Page({ board, variables, ...rest }) {
  const column = (document.documentElement.clientWidth - 2 * MARGIN + GAP) / COLUMNS;
  const bottom = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * ROW;
  const chip = { border: `1px solid ${theme.colors.border.medium}`, borderRadius: 2, padding: '2px 8px' };
  return (
    <main style={{ padding: `${GAP}px ${MARGIN}px`, background: theme.colors.background.canvas }}>
      <header style={{ display: 'flex', gap: 12, alignItems: 'center', height: 40 }}>
        <b>{board.title}</b>
        {board.templating.list.map(({ name, label }) => (
          <span key={name} style={chip}>{label}: {variables[name] === '.*' ? 'All' : variables[name]}</span>
        ))}
        {board.links.map(({ title }) => <span key={title} style={chip}>{title}</span>)}
      </header>
      <div style={{ position: 'relative', height: bottom }}>
        {board.panels.map((panel) => {
          const at = box(panel.gridPos, column);
          if (panel.type === 'row') return <Row key={panel.id} panel={panel} at={at} />;
          return (
            <Guard key={panel.id} panel={panel} report={rest.report}>
              <Panel panel={panel} box={at} theme={theme} {...rest} />
            </Guard>
          );
        })}
      </div>
    </main>
  );
}

// The beginning of every annotation and its color. Steps that follow each other are one annotation.
async function annotated(board, prometheus) {
  const found = await Promise.all(board.annotations.list.map(async ({ expr, step, iconColor }) => {
    const stepMs = Number.parseFloat(step) * 1000;
    const series = await prometheus.series(expr, stepMs);
    const times = series.flatMap(({ values }) => values.map(([at]) => at * 1000)).sort((a, b) => a - b);
    const begins = times.filter((at, index) => index === 0 || at - times[index - 1] > stepMs);
    return begins.map((at) => ({ at, color: iconColor }));
  }));
  return found.flat();
}

const board = await (await fetch('board.json')).json();
const variables = Object.fromEntries(
  board.templating.list.map(({ name }) => [name, asked.get(name) ?? 'Prometheus']),
);
const scrapeMs = Number(asked.get('scrape')) * 1000;
const range = span(Number(asked.get('minutes')), Number(asked.get('until')));
const prometheus = new Prometheus(asked.get('prometheus'), scrapeMs, range, variables);
const notes = await annotated(board, prometheus);
window.notes = notes.length;

let waiting = board.panels.filter(({ type }) => type !== 'row').length;
function report(panel, fault) {
  if (fault) window.faults.push(`${panel.title}: ${fault}`);
  else waiting -= 1;
  if (waiting === 0) settled();
}

async function settled() {
  await document.fonts.ready;
  // Twice: what is measured in the first frame is drawn in the second one.
  for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
  window.done = true;
}

createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Page board={board} variables={variables} prometheus={prometheus} notes={notes} report={report} />
  </ThemeContext.Provider>,
);
