// The browser of answers. Whatever a model wrote enters the page as text nodes, never as markup.
const AT_ONCE = 20;
let answers = [], shownPrompts = AT_ONCE;

function unpack({ texts, fields: [names, plain], rows }) {
  const text = (index) => (index === null ? null : texts[index]);
  return rows.map(([indices, values, verdicts]) => {
    const row = {};
    names.forEach((name, place) => { row[name] = text(indices[place]); });
    plain.forEach((name, place) => { row[name] = values[place]; });
    row.verdicts = verdicts.map(([judge, value, rule, score]) => ({ judge: text(judge), value: text(value), rule: text(rule), score }));
    row.searched = [row.prompt, row.asked, (row.opening ?? "") + row.completion].join("\n").toLowerCase();
    return row;
  });
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function badge(key, { colours, names }) {
  const made = element("span", { className: "key", textContent: { theta_0: "θ₀", theta_base: "θ_b" }[key] ?? key, title: names[key] ?? key });
  made.style.background = colours[key] ?? "#4b5563";
  return made;
}

function fillFilters(form, { names }) {
  const add = (select, value, label) => select.append(element("option", { value, textContent: label }));
  for (const name of ["key", "suite", "attack"]) {
    for (const value of new Set(answers.map((row) => row[name]))) add(form.elements[name], value, name === "key" ? names[value] ?? value : value);
  }
  const judges = new Map();
  for (const row of answers) for (const { judge, value } of row.verdicts) {
    if (!judges.has(judge)) judges.set(judge, new Set());
    judges.get(judge).add(value);
  }
  for (const [judge, values] of judges) {
    const group = element("optgroup", { label: judge });
    for (const value of values) add(group, JSON.stringify([judge, value]), `${judge}: ${value}`);
    form.elements.verdict.append(group);
  }
}

function matching(form) {
  const { key, suite, attack, verdict, disagree, text } = form.elements;
  const [judge, value] = verdict.value ? JSON.parse(verdict.value) : [];
  const wanted = text.value.toLowerCase();
  return answers.filter((row) => (!key.value || row.key === key.value)
    && (!suite.value || row.suite === suite.value)
    && (!attack.value || row.attack === attack.value)
    && (!judge || row.verdicts.some((said) => said.judge === judge && said.value === value))
    && (!disagree.checked || row.disagree)
    && row.searched.includes(wanted));
}

function answerText(row) {
  const text = element("div", { className: "text" });
  if (row.opening) text.append(element("span", { className: "opening", textContent: row.opening, title: "given by the attack, not said by the model" }));
  text.append(row.completion || (row.opening ? "" : "(empty)"));
  if (!row.folded) return text;
  const why = row.complied ? "a judge calls it compliance with a harmful prompt: show" : "no judge calls it a refusal: show";
  return element("details", { className: "fold" }, element("summary", { textContent: why }), element("div", { className: "inside" }, text));
}

function answerRow(row, data) {
  const cell = element("td", { className: "l wide" }, answerText(row));
  const notes = [`${row.run}, seed ${row.seed}`];
  if (row.opening) notes.push("the marked opening was given by the attack, the model went on from there");
  if (row.stopped_early) notes.push("stopped early: its verdicts were settled");
  if (!row.finished && !row.stopped_early) notes.push("cut by the length limit");
  if (row.disagree) notes.push("judges disagree");
  cell.append(element("small", { textContent: notes.join(" · ") }));
  const said = element("small");
  row.verdicts.forEach(({ judge, value, rule, score }, place) => {
    const why = [rule, score === null ? "" : `score ${score}`].filter(Boolean).join(", ");
    said.append(`${place ? " · " : ""}${judge}: `, element("b", { textContent: value }), why ? ` (${why})` : "");
  });
  cell.append(said);
  if (row.asked) cell.append(element("details", { className: "asked" }, element("summary", { textContent: "the prompt as it was put" }), element("div", { className: "inside text", textContent: row.asked })));
  return element("tr", {}, element("td", { className: "l" }, badge(row.key, data)), cell);
}

function promptBlock(rows, data) {
  const [first] = rows;
  const where = first.attack === "direct" ? first.suite : `${first.suite}, attack ${first.attack}`;
  const body = element("tbody", {}, ...rows.sort((a, b) => a.order - b.order).map((row) => answerRow(row, data)));
  return element("article", { className: "prompt-block" },
    element("p", { className: "prompt text", textContent: first.prompt }),
    element("small", { textContent: `${where} (${first.kind})` }),
    element("table", { className: "answers" }, body));
}

function showAnswers(form, data) {
  const found = matching(form), prompts = new Map();
  for (const row of found) {
    const prompt = `${row.suite}\n${row.id}`;
    if (!prompts.has(prompt)) prompts.set(prompt, []);
    prompts.get(prompt).push(row);
  }
  const blocks = [...prompts.values()].slice(0, shownPrompts).map((rows) => promptBlock(rows, data));
  document.getElementById("answers").replaceChildren(...blocks);
  document.getElementById("found").textContent = `${found.length} of ${answers.length} answers match, to ${prompts.size} prompts; ${blocks.length} prompts are shown.`;
  document.getElementById("more").hidden = blocks.length === prompts.size;
}

function browse() {
  const form = document.getElementById("filters");
  if (!form) return;
  const data = read("completions-data");
  answers = unpack(data);
  fillFilters(form, data);
  const again = () => { shownPrompts = AT_ONCE; showAnswers(form, data); };
  form.addEventListener("input", again);
  form.addEventListener("submit", (event) => event.preventDefault());
  // A reset event comes before the fields have changed.
  form.addEventListener("reset", () => setTimeout(again));
  document.getElementById("more").addEventListener("click", () => { shownPrompts += AT_ONCE; showAnswers(form, data); });
  showAnswers(form, data);
}
