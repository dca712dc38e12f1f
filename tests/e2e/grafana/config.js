// Applies a panel's field configuration, with the defaults that Grafana's own panels have.
import {
  FieldConfigOptionsRegistry, applyFieldOverrides, cacheFieldDisplayNames, displayNameOverrideProcessor,
  identityOverrideProcessor, numberOverrideProcessor, standardTransformers, standardTransformersRegistry,
  stringOverrideProcessor, thresholdsOverrideProcessor, transformDataFrame, unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

const DEFAULTS = {
  timeseries: {
    color: { mode: 'palette-classic' },
    custom: {
      drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none',
      showPoints: 'auto', pointSize: 5, spanNulls: false, stacking: { mode: 'none', group: 'A' },
      axisPlacement: 'auto', axisGridShow: true, axisBorderShow: false, axisCenteredZero: false,
      axisColorMode: 'text', axisLabel: '', barAlignment: 0, barWidthFactor: 0.6,
      hideFrom: { tooltip: false, viz: false, legend: false }, scaleDistribution: { type: 'linear' },
      thresholdsStyle: { mode: 'off' },
    },
  },
  table: {
    color: { mode: 'thresholds' },
    custom: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false, filterable: false },
  },
  stat: { color: { mode: 'thresholds' }, custom: {} },
  'state-timeline': { color: { mode: 'thresholds' }, custom: { fillOpacity: 70, lineWidth: 0 } },
};
const PROCESSES = {
  unit: unitOverrideProcessor, min: numberOverrideProcessor, max: numberOverrideProcessor,
  decimals: numberOverrideProcessor, displayName: displayNameOverrideProcessor,
  color: identityOverrideProcessor, noValue: stringOverrideProcessor, thresholds: thresholdsOverrideProcessor,
  mappings: valueMappingsOverrideProcessor, links: identityOverrideProcessor,
  description: stringOverrideProcessor,
};
// What an override or a default may set besides the defaults above.
const MORE = ['lineStyle', 'fillBelowTo', 'transform', 'axisSoftMin', 'axisSoftMax', 'width', 'minWidth', 'footer'];

function property(id, process, custom) {
  const nothing = () => null;
  return {
    id, name: id, path: id.replace('custom.', ''), isCustom: custom, process, settings: {},
    editor: nothing, override: nothing, shouldApply: () => true, getItemsCount: () => 0,
  };
}

const custom = new Set([...MORE, ...Object.values(DEFAULTS).flatMap((each) => Object.keys(each.custom))]);
const known = [
  ...Object.entries(PROCESSES).map(([id, process]) => property(id, process, false)),
  ...[...custom].map((name) => property(`custom.${name}`, identityOverrideProcessor, true)),
];
const registry = new FieldConfigOptionsRegistry(() => known);
standardTransformersRegistry.setInit(() => {
  const unique = new Map(Object.values(standardTransformers).map((each) => [each.id, each]));
  return [...unique.values()].map((each) => ({ id: each.id, name: each.name, transformation: async () => each }));
});

// The properties of a panel that this page would ignore: each is a fault.
export function unknown(panel) {
  const { defaults, overrides = [] } = panel.fieldConfig;
  const named = [
    ...Object.keys(defaults),
    ...Object.keys(defaults.custom ?? {}).map((name) => `custom.${name}`),
    ...overrides.flatMap((each) => each.properties.map(({ id }) => id)),
  ];
  const ids = new Set(['custom', ...known.map(({ id }) => id)]);
  return named.filter((name) => !ids.has(name));
}

export async function configured(panel, frames, theme) {
  const data = panel.transformations?.length
    ? await lastValueFrom(transformDataFrame(panel.transformations, frames))
    : frames;
  const { defaults, overrides = [] } = panel.fieldConfig;
  const base = DEFAULTS[panel.type];
  const merged = { ...base.custom, ...defaults.custom };
  if (merged.stacking) merged.stacking = { group: 'A', ...merged.stacking };
  const series = applyFieldOverrides({
    data, theme, timeZone: 'utc', fieldConfigRegistry: registry, replaceVariables: (text) => text,
    fieldConfig: { defaults: { ...base, ...defaults, custom: merged }, overrides },
  });
  cacheFieldDisplayNames(series);
  return series;
}
