// Bundles the page into the folder named on the command line.
import { cp } from 'node:fs/promises';
import { build } from 'esbuild';

const outdir = process.argv[2];
await build({
  entryPoints: ['main.jsx'],
  outdir,
  bundle: true,
  splitting: true,
  minify: true,
  format: 'esm',
  jsx: 'automatic',
  logLevel: 'warning',
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}', global: 'window' },
  loader: Object.fromEntries(['.svg', '.png', '.woff2', '.woff', '.ttf'].map((kind) => [kind, 'dataurl'])),
});
await cp('index.html', `${outdir}/index.html`);
// Where Grafana's server has them.
await cp('node_modules/@grafana/ui/dist/public/img', `${outdir}/build/img`, { recursive: true });
const font = 'node_modules/@fontsource-variable/inter/files/inter-latin-wght-normal.woff2';
for (const weight of ['Regular', 'Medium']) await cp(font, `${outdir}/fonts/inter/Inter-${weight}.woff2`);
