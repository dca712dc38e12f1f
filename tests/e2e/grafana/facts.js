// What can be seen of each panel, for a test to judge.

const COLOR = /rgba?\([^)]*\)/;

function color(element) {
  const style = getComputedStyle(element);
  const [solid] = COLOR.exec(style.backgroundColor);
  return solid.endsWith(', 0)') ? (COLOR.exec(style.backgroundImage)?.[0] ?? null) : solid;
}

function inside(element, outer) {
  const [one, other] = [element.getBoundingClientRect(), outer.getBoundingClientRect()];
  return one.width > 0 && one.left >= other.left - 1 && one.right <= other.right + 1;
}

// Whether the text is cut off, or has no room.
function cut(element) {
  return element.scrollWidth > element.clientWidth + 1;
}

export function facts() {
  return [...document.querySelectorAll('section[data-title]')].map((section) => {
    const all = (selector) => [...section.querySelectorAll(selector)];
    const text = (element) => element.textContent.trim();
    const { left, top, right, bottom } = section.getBoundingClientRect();
    return {
      title: section.dataset.title,
      kind: section.dataset.kind,
      box: [left, top, right, bottom],
      nothing: all('.nothing').map(text)[0] ?? null,
      legend: all('[data-testid^="data-testid VizLegend series"]').map((item) => ({
        text: text(item),
        color: color(item.querySelector('[data-testid="series-icon"]')),
        inside: inside(item, section),
      })),
      header: all('[role=columnheader]').map((cell) => ({
        text: text(cell), inside: inside(cell, section), cut: cut(cell.querySelector('span, button') ?? cell),
      })),
      rows: all('[role=row]').slice(1).map((row) => [...row.querySelectorAll('[role=gridcell]')].map((cell) => ({
        text: text(cell), color: color(cell), inside: inside(cell, section), cut: cut(cell),
      }))),
      states: all('.state').map((state) => ({ text: text(state), color: color(state) })),
      colors: all('*').map(color).filter(Boolean),
      text: text(section),
    };
  });
}
