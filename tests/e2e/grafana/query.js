// Asks Prometheus as its data source in Grafana does, and returns data frames.
import { FieldType, rangeUtil, toDataFrame } from '@grafana/data';

// Grafana's $__rate_interval is at least four scrapes.
const SCRAPES = 4;

export function filled(text, variables) {
  return text.replace(/\$\{?(\w+)\}?/g, (whole, name) => variables[name] ?? whole);
}

function number(text) {
  return { '+Inf': Infinity, '-Inf': -Infinity }[text] ?? Number(text);
}

// A graph has a gap where there is no number.
function finite(value) {
  return Number.isFinite(value) ? value : null;
}

function legend(format, labels, expr) {
  if (format) return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
  const inner = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
  return inner.length ? `{${inner.join(', ')}}` : expr;
}

export class Prometheus {
  constructor(url, scrapeMs, range, variables) {
    Object.assign(this, { url, scrapeMs, range, variables });
  }

  async #ask(path, parameters) {
    const reply = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const answer = await reply.json();
    if (answer.status !== 'success') throw new Error(answer.error);
    return answer.data.result;
  }

  #expr(expr, stepMs) {
    const seconds = Math.round((this.range.to.valueOf() - this.range.from.valueOf()) / 1000);
    return filled(expr, {
      ...this.variables,
      __interval: `${stepMs / 1000}s`,
      __rate_interval: `${Math.max(stepMs + this.scrapeMs, SCRAPES * this.scrapeMs) / 1000}s`,
      __range: `${seconds}s`,
      __range_s: String(seconds),
    });
  }

  #step(width) {
    const least = `${this.scrapeMs / 1000}s`;
    const { intervalMs } = rangeUtil.calculateInterval(this.range, Math.max(Math.floor(width), 1), least);
    return Math.max(intervalMs, 1000);
  }

  // A range query's series: [{metric, values: [[seconds, text], ...]}].
  async series(expr, stepMs) {
    const at = (time) => String((Math.floor(time.valueOf() / stepMs) * stepMs) / 1000);
    return this.#ask('query_range', {
      query: this.#expr(expr, stepMs),
      start: at(this.range.from),
      end: at(this.range.to),
      step: String(stepMs / 1000),
    });
  }

  async frames(target, width, several) {
    const step = this.#step(width);
    const expr = this.#expr(target.expr, step);
    const time = String(this.range.to.valueOf() / 1000);
    const found = target.instant
      ? await this.#ask('query', { query: expr, time })
      : await this.series(target.expr, step);
    if (target.format === 'table') return [table(found, target.refId, several)];
    return found.map(({ metric, value, values }) => {
      const points = values ?? [value];
      const name = legend(target.legendFormat, metric, expr);
      return toDataFrame({
        refId: target.refId,
        name,
        fields: [
          { name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000), config: { interval: step } },
          {
            name: 'Value',
            type: FieldType.number,
            labels: metric,
            values: points.map(([, text]) => finite(number(text))),
            config: { displayNameFromDS: name },
          },
        ],
      });
    });
  }
}

function table(found, refId, several) {
  const labels = [...new Set(found.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const column = (name, values) => ({ name, type: FieldType.string, values, config: { filterable: true } });
  return toDataFrame({
    refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: found.map(({ value }) => value[0] * 1000), config: {} },
      ...labels.map((label) => column(label, found.map(({ metric }) => metric[label] ?? ''))),
      {
        name: several ? `Value #${refId}` : 'Value',
        type: FieldType.number,
        values: found.map(({ value }) => number(value[1])),
        config: {},
      },
    ],
  });
}
