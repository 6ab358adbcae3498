"use strict";
const problems = [];
function note(problem) {
  problems.push(String(problem));
  const place = document.getElementById("script-errors");
  if (place) { place.dataset.count = problems.length; place.textContent = problems.join("\n"); }
}
window.onerror = (message, source, line) => { note(`${message} (line ${line})`); };
window.addEventListener("unhandledrejection", (event) => note(event.reason));

const read = (id) => JSON.parse(document.getElementById(id).textContent);

function save(name, href) {
  const link = document.createElement("a");
  link.download = name; link.href = href;
  document.body.append(link); link.click(); link.remove();
}

function csv(table) {
  const quote = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [table.columns, ...table.rows].map((row) => row.map(quote).join(",")).join("\n") + "\n";
}

async function picture(figure, format) {
  // The limitation travels inside the picture.
  const layout = JSON.parse(JSON.stringify(figure.layout));
  const width = figure.clientWidth, bottom = (layout.margin?.b ?? 56) + 34;
  layout.margin = { ...layout.margin, b: bottom };
  layout.height = (layout.height ?? 450) + 34;
  layout.annotations = [...(layout.annotations ?? []), {
    text: figure.dataset.limitation, xref: "paper", yref: "paper", x: 0, y: 0, yshift: -bottom + 8,
    xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 10, color: "#6b7280" },
  }];
  const image = await Plotly.toImage({ data: figure.data, layout }, { format, width, height: layout.height, scale: 2 });
  save(`geomsafe-${figure.dataset.id}.${format}`, image);
}

document.addEventListener("DOMContentLoaded", async () => {
  browse();
  for (const plot of document.querySelectorAll(".plot")) {
    const spec = read(`spec-${plot.dataset.id}`);
    await Plotly.newPlot(plot, spec.data, spec.layout, { responsive: true, displayModeBar: false });
    plot.dataset.drawn = "yes";
  }
  document.body.dataset.ready = "yes";
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  if (button.dataset.do === "picture") await picture(document.getElementById(`plot-${button.dataset.figure}`), button.dataset.format);
  if (button.dataset.do === "csv") {
    const table = read("analysis").tables[button.dataset.table];
    save(`${button.dataset.table}.csv`, URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" })));
  }
  if (button.dataset.do === "copy") {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.source).textContent);
    button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500);
  }
});
